"""Results that must wait for the database: written down beside it, stored by whoever comes next, lost with nobody."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import duckdb
import pytest
from store_helpers import one_line, run_python, start_python

from aqx.errors import InputError, StoreError
from aqx.store import Database, claim, finish, get_trial, list_trials, register_task, release, report
from aqx.store.endings import result
from aqx.store.health import check_file
from aqx.store.lock import Lock
from aqx.store.outcomes import close, close_all
from aqx.store.pending import Note, folder_of, waiting

HOLD = """
import sys
from aqx.store import Database
with Database(sys.argv[1]).transaction():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def db(db_path: Path) -> Database:
    return Database(db_path, create=True)


def claimed(db: Database, *names: str) -> list[int]:
    task = register_task(db, "t", {"objective": "acc", "direction": "maximize"})
    rows = [claim(db, task, class_id=None, name=name, seed=0, lease_seconds=60) for name in names]
    return [row.trial_id for row in rows if row]


def beside(db: Database) -> list[str]:
    return sorted(path.name for path in db.path.parent.iterdir() if path.name != db.path.name + ".lock")


def note_of(db: Database, trial_id: int, value: float, name: str | None = None) -> Note:
    return Note.of(db.path, db.identity, None, {trial_id: result(value, {"acc": value}, name=name)})


def test_a_holder_that_is_stopped_is_named_and_no_result_is_lost(db: Database):
    (trial,) = claimed(db, "relu(x)")
    impatient = Database(db.path, timeout=0.02)
    with start_python(HOLD, str(db.path)) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        os.kill(holder.pid, signal.SIGSTOP)
        with pytest.raises(StoreError) as error:
            finish(impatient, trial, 0.5, {"acc": 0.5})
        one_line(error, f"process {holder.pid}", "(stopped)", f"results of trials {trial}", str(folder_of(db.path)))
        assert len(waiting(db.path)) == 1
        holder.kill()
        holder.wait()
    assert get_trial(Database(db.path), trial).objective == 0.5
    assert beside(db) == [db.path.name]


TELL = """
import sys
from aqx.store import Database, finish
db = Database(sys.argv[1])
print("open", flush=True)
sys.stdin.readline()
finish(db, 1, 0.25, {"acc": 0.25})
"""


def test_the_result_of_a_process_that_is_killed_while_it_waits_is_stored(db: Database):
    (trial,) = claimed(db, "relu(x)")
    with start_python(TELL, str(db.path)) as teller:
        assert teller.stdout and teller.stdin and teller.stdout.readline() == "open\n"
        with db.transaction():
            teller.stdin.write("\n")
            teller.stdin.flush()
            while not waiting(db.path):
                time.sleep(0.005)
            teller.kill()
            teller.wait()
    assert get_trial(Database(db.path), trial).objective == 0.25


def test_many_results_are_stored_by_one_transaction(db: Database):
    trials = claimed(db, *(f"{name}(x)" for name in ("relu", "elu", "tanh", "sin", "cos", "erf")))
    others = [Database(db.path) for _ in trials]
    stored: dict[int, float | None] = {}

    def tell(own: Database, trial: int) -> None:
        stored[trial] = finish(own, trial, trial / 10, {"acc": trial / 10, "curve": [1, trial]}).objective

    threads = [threading.Thread(target=tell, args=pair) for pair in zip(others, trials, strict=True)]
    with db.transaction():
        for thread in threads:
            thread.start()
        while len(waiting(db.path)) < len(trials):
            time.sleep(0.005)
    for thread in threads:
        thread.join()
    assert stored == {trial: trial / 10 for trial in trials}
    assert [row.metrics for row in list_trials(db, 1)] == [{"acc": t / 10, "curve": [1, t]} for t in trials]
    assert beside(db) == [db.path.name]


def test_what_another_process_stored_comes_back_as_it_is_stored(db: Database):
    (trial,) = claimed(db, "relu(x)")
    note = note_of(db, trial, 0.5)
    note.write()
    assert not note.is_answered
    with db.transaction():
        pass
    assert note.is_answered
    assert note.take_answer() == {trial: get_trial(db, trial)}
    assert beside(db) == [db.path.name]


def test_a_note_that_was_stored_but_not_put_away_is_stored_once(db: Database):
    (trial,) = claimed(db, "relu(x)")
    note = note_of(db, trial, 0.5)
    note.write()
    kept = note.path.read_bytes()
    with db.transaction():
        pass
    stored = get_trial(db, trial)
    note.discard()
    folder_of(db.path).mkdir()
    note.path.write_bytes(kept)  # as if the process had died after COMMIT
    with db.transaction():
        pass
    assert note.take_answer() == {trial: stored}


def test_a_second_result_is_refused_to_who_waits_and_kept_for_who_died(db: Database, caplog: pytest.LogCaptureFixture):
    (trial,) = claimed(db, "relu(x)")
    finish(db, trial, 0.5, {"acc": 0.5})
    late = note_of(db, trial, 0.75)
    late.write()
    with caplog.at_level("WARNING", "aqx"), db.transaction():
        pass
    assert "a result is never overwritten" in caplog.text
    assert len(waiting(db.path, ".refused")) == 1
    assert "refused" in " ".join(check_file(db.path).notes)
    (answer,) = late.take_answer().values()
    assert isinstance(answer, InputError)
    assert get_trial(db, trial).objective == 0.5
    assert beside(db) == [db.path.name]


def test_a_late_result_does_not_land_on_a_later_claim_of_the_same_function(db: Database, tmp_path: Path):
    kept = shutil.copy(db.path, tmp_path / "kept.duckdb")
    (late,) = claimed(db, "relu(x)")
    token = get_trial(db, late).token
    shutil.copy(kept, db.path)
    restored = Database(db.path)
    assert claimed(restored, "relu(x)") == [late] and get_trial(restored, late).token != token
    with pytest.raises(InputError, match="was not claimed with token .* restored from a copy"):
        finish(restored, late, 0.5, {}, name="relu(x)", token=token)
    assert get_trial(restored, late).status == "running"
    report(restored, late, {"loss": 1.0})
    with pytest.raises(InputError, match="was not claimed with token"):
        finish(restored, late, 0.5, {}, token=token)
    assert finish(restored, late, 0.75, {}, token=get_trial(restored, late).token).objective == 0.75


def test_a_token_lives_as_long_as_its_trial(db: Database):
    (trial,) = claimed(db, "relu(x)")
    token = get_trial(db, trial).token
    release(db, trial)
    assert claimed(db, "relu(x)") == [trial] and get_trial(db, trial).token == token, "a late result is accepted"
    with db.transaction() as con:
        con.execute("UPDATE trials SET token = NULL")  # as in databases of before
    assert finish(db, trial, 0.5, {}, token=token).status == "done"


def test_a_transaction_that_raises_takes_nothing_in(db: Database):
    (trial,) = claimed(db, "relu(x)")
    note = note_of(db, trial, 0.5)
    note.write()
    with pytest.raises(KeyError), db.transaction():
        raise KeyError
    assert not note.is_answered
    assert get_trial(db, trial).status == "running"
    assert get_trial(Database(db.path), trial).objective == 0.5


def test_notes_of_another_database_and_damaged_ones_stay_where_they_are(db: Database, tmp_path: Path):
    (trial,) = claimed(db, "relu(x)")
    other = Database(tmp_path / "other.duckdb", create=True)
    foreign = Note.of(db.path, other.identity, None, {trial: result(0.5, {"acc": 0.5})})
    foreign.write()
    (folder_of(db.path) / "0-damaged.json").write_text("{")
    (folder_of(db.path) / "1-damaged.json").write_text('{"identity": 1}')
    Database(db.path)
    assert get_trial(db, trial).status == "running"
    assert len(waiting(db.path)) == 3
    assert "results of 3 trainings" in " ".join(check_file(db.path).notes)


def test_the_result_of_another_function_or_task_is_refused(db: Database):
    (trial,) = claimed(db, "relu(x)")
    with pytest.raises(InputError) as error:
        close(db, None, trial, result(0.5, {"acc": 0.5}, name="tanh(x)"))
    one_line(error, "relu(x) in this database, not of tanh(x)")
    with pytest.raises(InputError) as error:
        close(db, 2, trial, result(0.5, {"acc": 0.5}))
    one_line(error, "another task")
    assert get_trial(db, trial).status == "running"
    assert close(db, 1, trial, result(0.5, {"acc": 0.5}, name="relu(x)")).objective == 0.5


def test_a_restored_copy_refuses_what_was_claimed_after_it_was_made(db: Database, tmp_path: Path):
    (first,) = claimed(db, "relu(x)")
    copy = tmp_path / "copy.duckdb"
    shutil.copy(db.path, copy)
    (late,) = claimed(db, "tanh(x)")
    shutil.copy(copy, db.path)
    restored = Database(db.path)
    assert claimed(restored, "sin(x)") == [late]
    with pytest.raises(InputError, match=r"sin\(x\) in this database, not of tanh"):
        close(db, 1, late, result(0.5, {"acc": 0.5}, name="tanh(x)"))
    assert close(db, 1, first, result(0.5, {"acc": 0.5}, name="relu(x)")).status == "done"


def test_a_late_result_in_a_batch_harms_no_other(db: Database):
    first, second = claimed(db, "relu(x)", "tanh(x)")
    finish(db, first, 0.5, {"acc": 0.5})
    closed, snapshot = close_all(
        db, 1, {first: result(0.6, {"acc": 0.6}), second: result(0.7, {"acc": 0.7}), 99: result(1.0, {"acc": 1.0})}
    )
    assert [isinstance(closed[trial], InputError) for trial in (first, second, 99)] == [True, False, True]
    assert [brief.objective for brief in snapshot.trials] == [0.5, 0.7]


def test_what_a_foreign_program_holds_is_waited_for(db: Database):
    (trial,) = claimed(db, "relu(x)")
    hold = "import sys, time, duckdb; con = duckdb.connect(sys.argv[1]); print(flush=True); time.sleep(1)"
    with start_python(hold, str(db.path)) as holder:
        assert holder.stdout and holder.stdout.readline()
        assert finish(db, trial, 0.5, {"acc": 0.5}).objective == 0.5
        holder.wait()


def test_a_connection_of_the_same_process_is_named(db: Database):
    with duckdb.connect(str(db.path)):
        for use in (lambda: Database(db.path), lambda: release(db, 1)):
            with pytest.raises(StoreError) as error:
                use()
            one_line(error, "open in this process", "close that first")


def test_who_asked_first_comes_first(tmp_path: Path):
    lock = Lock(str(tmp_path / "a.lock"), str(tmp_path / "a"))
    code = """
import sys
from aqx.store.lock import Lock
print("ready", flush=True)
for line in sys.stdin:
    hold = Lock(sys.argv[1], "a").acquire(False, 60, prepare=lambda: print("waits", flush=True))
    print("has it", flush=True)
    sys.stdin.readline()
    hold.release()
"""
    hold = lock.acquire(False, 1)
    assert hold and not hold.others_wait()
    with start_python(code, lock.path) as first, start_python(code, lock.path) as second:
        for process in (first, second):
            assert process.stdin and process.stdout and process.stdout.readline() == "ready\n"
            process.stdin.write("take\n")
            process.stdin.flush()
            assert process.stdout.readline() == "waits\n"
            time.sleep(0.2)  # from having said so to standing in the queue
        assert hold.others_wait()
        hold.release()
        assert first.stdout and first.stdin and first.stdout.readline() == "has it\n"
        with pytest.raises(TimeoutError):
            lock.acquire(True, 0.05)
        first.stdin.write("\n")
        first.stdin.flush()
        assert second.stdout and second.stdin and second.stdout.readline() == "has it\n"
        second.kill()
        first.kill()


def test_readers_share_and_writers_do_not(tmp_path: Path):
    path = str(tmp_path / "a.lock")
    read = """
import sys
from aqx.store.lock import Lock
try:
    print(bool(Lock(sys.argv[1], "a").acquire(sys.argv[2] == "shared", 0.05)))
except TimeoutError:
    print("no")
"""
    for mine, other, outcome in (
        ("shared", "shared", "True"),
        ("shared", "alone", "no"),
        ("alone", "shared", "no"),
        ("alone", "alone", "no"),
    ):
        hold = Lock(path, "a").acquire(mine == "shared", 1)
        assert hold
        assert run_python(read, path, other).stdout.strip() == outcome, (mine, other)
        hold.release()


def test_a_lock_file_that_was_removed_meanwhile_is_no_lock(tmp_path: Path):
    path = tmp_path / "a.lock"
    lock = Lock(str(path), "a")
    hold = lock.acquire(False, 1)
    path.unlink()
    assert hold
    hold.release()
    again = lock.acquire(False, 1)
    assert again and path.exists()
    again.release()


NOT_OURS = {"text": b"root:x:0:0", "empty": b"", "header": b"\0" * 8 + b"DUCK" + b"\0" * 5000}


@pytest.mark.parametrize("content", NOT_OURS.values(), ids=NOT_OURS.keys())
def test_nothing_is_made_beside_what_is_not_ours(tmp_path: Path, content: bytes):
    path = tmp_path / "passwd"
    path.write_bytes(content)
    with pytest.raises(StoreError):
        Database(path)
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["passwd"]


def test_a_lock_is_as_open_as_its_database(db_path: Path):
    db = Database(db_path, create=True)
    Path(f"{db_path}.lock").unlink()
    db_path.chmod(0o664)
    Database(db_path)
    assert Path(f"{db.path}.lock").stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize("gone", [FileExistsError, FileNotFoundError], ids=["before", "after"])
def test_a_folder_that_somebody_has_just_emptied_and_removed_is_made_again(
    db: Database, monkeypatch: pytest.MonkeyPatch, gone: type[OSError]
):
    (trial,) = claimed(db, "relu(x)")
    mkdir, calls = Path.mkdir, iter([gone()])

    def removed_at_first(self: Path, *args: object, **options: object) -> None:
        for error in calls:
            raise error
        mkdir(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", removed_at_first)
    note_of(db, trial, 0.5).write()
    assert get_trial(Database(db.path), trial).objective == 0.5


def test_where_nothing_can_be_written_beside_it_the_lock_is_waited_for(db: Database, monkeypatch: pytest.MonkeyPatch):
    (trial,) = claimed(db, "relu(x)")
    tried = threading.Event()

    def full(self: Note) -> None:
        tried.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Note, "write", full)
    stored: list[float | None] = []
    own = Database(db.path)
    thread = threading.Thread(target=lambda: stored.append(finish(own, trial, 0.5, {"acc": 0.5}).objective))
    with db.transaction():
        thread.start()
        tried.wait()
    thread.join()
    assert stored == [0.5] and get_trial(db, trial).objective == 0.5
    own.timeout = 0.02
    with start_python(HOLD, str(db.path)) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match="could not be kept either"):
            finish(own, trial, 0.25, {"acc": 0.25})
        holder.kill()
