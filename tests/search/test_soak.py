"""Many processes at random operations, killed at random moments, against what they wrote down outside the database."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from store_helpers import BARE

from aqx.store import Database, TrialRow, list_trials, remove

pytestmark = pytest.mark.usefixtures("quick_to_compile")

LEASE = 1.5
CLASSES = 60

WORKER = """
import random, time, uuid
from aqx.errors import InputError
from aqx.store import Database, claim, fail, finish, heartbeat, list_trials, lose, prune, release, report, retry

path, log, seed, lease, classes = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
chance, db, held = random.Random(seed), Database(sys.argv[1]), []
file = open(log, "a", buffering=1)

def write(*words):
    file.write(" ".join(map(str, (time.time(), *words))) + chr(10))

while True:
    class_id = str(uuid.UUID(int=chance.randrange(classes)))
    match chance.choices(["claim", "end", "late", "beat", "retry", "report"], [5, 6, 1, 2, 1, 1])[0]:
        case "claim":
            write("claiming", class_id)
            trial = claim(db, 1, class_id=class_id, name="f(x)", seed=0, lease_seconds=lease)
            if trial:
                held.append(trial.trial_id)
                write("claimed", trial.trial_id, class_id)
        case "end" | "late" as when:
            if not held:
                continue
            trial_id = held.pop(chance.randrange(len(held)))
            if when == "late":
                time.sleep(1.2 * lease)
            verb = chance.choice(["finish", "finish", "fail", "prune", "release", "lose", "forget"])
            value = chance.random()
            if verb == "forget":
                continue
            write("trying", verb, trial_id, value)
            try:
                {"finish": lambda: finish(db, trial_id, value, {"value": value}),
                 "fail": lambda: fail(db, trial_id, "boom"),
                 "prune": lambda: prune(db, trial_id, value, {}),
                 "release": lambda: release(db, trial_id),
                 "lose": lambda: lose(db, trial_id, "gone")}[verb]()
            except InputError:
                write("refused", verb, trial_id)
            else:
                write("did", verb, trial_id, value)
        case "beat":
            if held:
                write("beating", held[0])
                heartbeat(db, held[0], lease)
        case "report":
            if held:
                try:
                    report(db, held[0], {"note": "x" * chance.randrange(2000)})
                except InputError:
                    pass
        case "retry":
            ended = [trial for trial in list_trials(db, 1) if trial.status in ("done", "failed", "pruned")]
            if ended and chance.random() < 0.3:
                try:
                    (queued,) = retry(db, 1, [chance.choice(ended).trial_id])
                    write("queued", queued.trial_id, queued.retry_of)
                except InputError:
                    pass
    time.sleep(0.01 * chance.random())
"""


@dataclass
class Known:
    """What the processes wrote down of one trial."""

    class_id: str = ""
    claims: list[tuple[float, float]] = field(default_factory=list)  # from when it was asked for to when it was had
    signs: list[float] = field(default_factory=list)  # heartbeats, when they were about to be sent
    tried: list[tuple[float, str, float]] = field(default_factory=list)
    did: list[tuple[float, str, float]] = field(default_factory=list)


def read_logs(folder: Path) -> dict[int, Known]:
    known: dict[int, Known] = defaultdict(Known)
    for log in folder.glob("*.log"):
        asked = 0.0
        for line in log.read_text().splitlines():
            when, *words = line.split(" ")
            match words:
                case ["claiming", _]:
                    asked = float(when)
                case ["claimed", trial_id, class_id]:
                    known[int(trial_id)].class_id = class_id
                    known[int(trial_id)].claims.append((asked, float(when)))
                case ["beating", trial_id]:
                    known[int(trial_id)].signs.append(float(when))
                case ["trying", verb, trial_id, value]:
                    known[int(trial_id)].tried.append((float(when), verb, float(value)))
                case ["did", verb, trial_id, value]:
                    known[int(trial_id)].did.append((float(when), verb, float(value)))
    return known


ENDS = {"finish": "done", "fail": "failed", "prune": "pruned"}


def check(rows: list[TrialRow], known: dict[int, Known]) -> int:
    """Compare the database with the logs; return how many results were compared."""
    by_id = {row.trial_id: row for row in rows}
    assert sorted(by_id) == list(range(1, len(rows) + 1)), "a trial is gone"
    compared = 0
    for trial_id, log in known.items():
        ends = [(verb, value) for _, verb, value in log.did if verb in ENDS]
        assert len(ends) <= 1, f"trial {trial_id} ended twice"
        for verb, value in ends:
            row = by_id[trial_id]
            assert row.status == ENDS[verb] and row.objective == (None if verb == "fail" else value)
            compared += 1
    for row in rows:
        if row.status in ENDS.values():
            tried = [(ENDS[verb], value) for _, verb, value in known[row.trial_id].tried if verb in ENDS]
            assert any(row.status == status and (row.objective in (None, value)) for status, value in tried), (
                f"trial {row.trial_id} has a result that nobody told"
            )
    by_class: dict[str, list[tuple[int, Known]]] = defaultdict(list)
    for trial_id, log in known.items():
        by_class[log.class_id].append((trial_id, log))
    for class_id, trials in by_class.items():
        for first_id, first in trials:
            for asked, had in first.claims:
                # Until then it was surely held: nobody tried to end or give it back, and its lease had not lapsed.
                over = min((when for when, *_ in first.tried if when > asked), default=float("inf"))
                held = min(over, asked + LEASE)
                for other_id, other in trials:
                    for began, got in other.claims:
                        taken = other_id != first_id and began > had and got < held
                        assert not taken, f"{class_id}: {other_id} was claimed while {first_id} was held"
            ended = max((when for when, verb, _ in first.did if verb in ENDS), default=None)
            for other_id, other in trials:
                if ended is None or other_id <= first_id or not any(began > ended for began, _ in other.claims):
                    continue
                asked_for = [row.retry_of for row in rows if row.class_id == class_id and row.trial_id <= other_id]
                assert max(asked or 0 for asked in asked_for) >= first_id, f"{class_id} was finished by {first_id}"
    return compared


def run(path: Path, folder: Path, seconds: float, workers: int) -> int:
    """Let the processes work, killing one every half second, and return how many were killed."""
    chance, number, kills = random.Random(0), 0, 0

    def start() -> subprocess.Popen[bytes]:
        nonlocal number
        number += 1
        words = [path, folder / f"{number}.log", number, LEASE, CLASSES]
        return subprocess.Popen([sys.executable, "-c", BARE + WORKER, *map(str, words)])

    with contextlib.ExitStack() as stack:
        running = [start() for _ in range(workers)]
        stack.callback(lambda: [(process.kill(), process.wait()) for process in running])
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.5)
            place = chance.randrange(workers)
            assert all(process.poll() is None for process in running), "a worker ended by itself"
            running[place].send_signal(signal.SIGKILL)
            running[place].wait()
            running[place] = start()
            kills += 1
    return kills


@pytest.mark.parametrize(
    ("seconds", "workers"), [pytest.param(12, 4, id="short"), pytest.param(1200, 8, id="long", marks=pytest.mark.slow)]
)
def test_random_operations_of_many_processes_end_as_they_were_written_down(
    db_path: Path, tmp_path: Path, seconds: float, workers: int
):
    db = Database(db_path, create=True)
    folder = tmp_path / "logs"
    folder.mkdir()
    assert run(db_path, folder, seconds, workers) > seconds
    rows = list_trials(Database(db_path), 1)
    assert check(rows, read_logs(folder)) > 5
    assert remove(db, 1, {row.status for row in rows}) == len(rows)
