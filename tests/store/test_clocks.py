"""Claims of processes whose wall clocks differ and jump, on machines that sleep, pause and restart; and true time."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from store_helpers import start_python

from aqx.store import Database, claim, clock, count_trials, finish, get_trial, heartbeat, lose
from aqx.store.claims import Wanted, claim_first, take_snapshot
from aqx.store.health import check_file
from aqx.store.lease import is_gone, this_process

LEASE, BEAT = 60.0, 15.0


@dataclass
class Machine:
    """A machine as the store sees it: how long it has been running, and which boot and sleep it is at."""

    name: str
    running: float
    boots: int = 0


@dataclass
class Process:
    """A process with a wall clock of its own, as containers and wrong time zones may give it."""

    machine: Machine
    wall_off: float = 0.0
    holds: dict[int, float] = field(default_factory=dict)  # trials, and the true time of their last sign of life
    paused: bool = False
    anchor: Any = None
    offsets: dict[Any, Any] = field(default_factory=dict)


class World:
    """True time, and what each process may see of it."""

    def __init__(self, *machines: Machine):
        self.time = 0.0
        self.machines = machines

    def pass_(self, seconds: float) -> None:
        self.time += seconds
        for machine in self.machines:
            machine.running += seconds

    @contextlib.contextmanager
    def seen_by(self, process: Process) -> Iterator[None]:
        """What the block asks of the time, `process` asks."""
        machine = process.machine
        with (
            mock.patch.object(
                clock, "wall", lambda: datetime(2030, 1, 1) + timedelta(seconds=self.time + process.wall_off)
            ),
            mock.patch.object(clock, "steady", lambda: timedelta(seconds=machine.running)),
            mock.patch.object(clock, "name", lambda: f"boot{machine.boots}@{machine.name}/0"),
            mock.patch.object(clock, "_anchor", process.anchor),
            mock.patch.object(clock, "_offsets", process.offsets),
        ):
            yield
            process.anchor = clock.__dict__["_anchor"]


class Claims(RuleBasedStateMachine):
    """No claim with a heartbeat is ever taken by another; one without is taken after a lease, or little more."""

    @initialize(offsets=st.lists(st.sampled_from([0.0, 3600.0, -3600.0, 3e7, 1e-3]), min_size=5, max_size=5))
    def begin(self, offsets: list[float]) -> None:
        self.folder = tempfile.TemporaryDirectory()
        one, two, three = Machine("one", 1e4), Machine("two", 1e6), Machine("three", 5.0)
        self.world = World(one, two, three)
        self.processes = [
            Process(machine, off) for machine, off in zip([one, one, two, two, three], offsets, strict=True)
        ]
        with self.world.seen_by(self.processes[0]):
            self.db = Database(Path(self.folder.name, "clocks.duckdb"), create=True)
        self.signs: dict[int, float] = {}  # true time of the last sign of life, of every trial that has not ended
        self.function_of: dict[int, int] = {}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def take(self, process: Process, function: int) -> int | None:
        with self.world.seen_by(process):
            row = claim(self.db, 1, class_id=str(uuid.UUID(int=function)), name="f(x)", seed=0, lease_seconds=LEASE)
        if row is None:
            return None
        for trial, known in self.function_of.items():
            if known == function and trial in self.signs:
                silent = self.world.time - self.signs[trial]
                assert silent > LEASE, f"taken {silent:g} s after a sign of life"
        self.function_of[row.trial_id] = function
        self.signs[row.trial_id] = process.holds[row.trial_id] = self.world.time
        return row.trial_id

    def beat(self, process: Process) -> None:
        for trial in list(process.holds):
            with self.world.seen_by(process):
                stands = heartbeat(self.db, trial, LEASE)
            silent = self.world.time - self.signs[trial]
            assert stands or silent > LEASE, "a claim that was renewed in time was lost"
            if stands:
                self.signs[trial] = self.world.time
            else:
                del process.holds[trial]  # it has been overtaken, after a pause

    def live(self, seconds: float, still: Machine | None = None) -> None:
        """Time passes, in which all that run renew their claims in time."""
        while seconds > 0:
            step = min(seconds, BEAT)
            self.world.pass_(step)
            if still:
                still.running -= step
            seconds -= step
            for process in self.processes:
                if not process.paused and process.machine is not still:
                    self.beat(process)

    any_process = st.integers(0, 4)

    @rule(who=any_process, function=st.integers(0, 2))
    def claims(self, who: int, function: int):
        if not self.processes[who].paused:
            self.take(self.processes[who], function)

    @rule(seconds=st.sampled_from([1.0, 20.0, 70.0, 150.0]))
    def time_passes(self, seconds: float):
        self.live(seconds)

    @rule(who=any_process, jump=st.sampled_from([3600.0, -3600.0, 3e7, -3e7, 90.0, -1.0]))
    def a_wall_clock_jumps(self, who: int, jump: float):
        self.processes[who].wall_off += jump

    @rule(who=any_process)
    def a_process_dies(self, who: int):
        old = self.processes[who]
        self.processes[who] = Process(old.machine, old.wall_off)

    @rule(who=any_process)
    def a_process_is_stopped_or_goes_on(self, who: int):
        process = self.processes[who]
        process.paused = not process.paused
        if not process.paused:
            self.beat(process)

    @rule(which=st.integers(0, 2), seconds=st.sampled_from([5.0, 100.0, 300.0]))
    def a_machine_is_paused_and_does_not_know(self, which: int, seconds: float):
        self.live(seconds, still=self.world.machines[which])
        self.wake(self.world.machines[which])

    @rule(which=st.integers(0, 2), seconds=st.sampled_from([5.0, 100.0, 300.0]))
    def a_machine_sleeps(self, which: int, seconds: float):
        machine = self.world.machines[which]
        self.live(seconds, still=machine)
        machine.boots += 1
        self.wake(machine)

    def wake(self, machine: Machine) -> None:
        self.world.pass_(1e-3)
        for process in self.processes:
            if process.machine is machine and not process.paused:
                self.beat(process)

    @rule(which=st.integers(0, 2))
    def a_machine_is_started_anew(self, which: int):
        machine = self.world.machines[which]
        machine.boots, machine.running = machine.boots + 1, 1.0
        self.processes = [
            Process(process.machine, process.wall_off) if process.machine is machine else process
            for process in self.processes
        ]

    @rule(who=any_process, function=st.integers(0, 2))
    def who_waits_gets_what_is_dead(self, who: int, function: int):
        process = self.processes[who]
        holders = [other for other in self.processes if not other.paused]
        held = any(self.function_of[trial] == function for other in holders for trial in other.holds)
        if process.paused or held or function not in self.function_of.values():
            return
        if self.take(process, function) is None:
            self.live(LEASE + 2 * BEAT)
            assert self.take(process, function) is not None

    @rule(who=any_process)
    def a_process_finishes_what_it_has(self, who: int):
        process = self.processes[who]
        for trial in process.holds:
            with self.world.seen_by(process):
                lose(self.db, trial, "given up")  # and so it is free for the next
            del self.signs[trial]
        process.holds.clear()

    @invariant()
    def nothing_that_lives_is_called_stale(self):
        if not hasattr(self, "db"):
            return
        for process in (self.processes[0], self.processes[2], self.processes[4]):  # one of each machine
            self.world.pass_(1e-3)
            with self.world.seen_by(process):
                rows = {trial.trial_id: trial.status for trial in take_snapshot(self.db, 1).trials}
            for trial, sign in self.signs.items():
                assert rows[trial] == "running" or self.world.time - sign > LEASE


class ManyClaims(Claims):
    """The same for minutes."""


# What fails is not made simpler: that takes minutes, too.
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]
Claims.TestCase.settings = settings(max_examples=3, stateful_step_count=15, deadline=None, phases=PHASES)
ManyClaims.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, phases=PHASES)
TestClaims = Claims.TestCase
TestManyClaims = pytest.mark.slow(ManyClaims.TestCase)


# --- single stories of two machines, told to the second


class Two:
    """Two machines with one process each, over one database."""

    def __init__(self, path: Path):
        self.here, self.there = Process(Machine("here", 100.0)), Process(Machine("there", 9e6), wall_off=-3600.0)
        self.world = World(self.here.machine, self.there.machine)
        with self.world.seen_by(self.here):
            self.db = Database(path, create=True)

    def claims(self, who: Process, number: int = 1, lease: float = LEASE) -> int | None:
        with self.world.seen_by(who):
            row = claim(self.db, 1, class_id=str(uuid.UUID(int=number)), name="f", seed=0, lease_seconds=lease)
        return row and row.trial_id

    def beats(self, who: Process, trial: int = 1) -> bool:
        with self.world.seen_by(who):
            return heartbeat(self.db, trial, LEASE)

    def status(self, who: Process, trial: int = 1) -> str:
        with self.world.seen_by(who):
            return get_trial(self.db, trial).status


@pytest.fixture
def two(tmp_path: Path) -> Two:
    return Two(tmp_path / "two.duckdb")


def test_a_claim_of_a_machine_that_is_gone_lapses_a_lease_after_it_was_first_seen(two: Two):
    assert two.claims(two.there) == 1
    two.world.pass_(1e6)
    assert two.claims(two.here) is None, "how long ago that was, nobody knows"
    two.world.pass_(LEASE - 1)
    assert two.claims(two.here) is None and two.status(two.here) == "running"
    two.world.pass_(2)
    assert two.status(two.here) == "stale" and two.claims(two.here) == 2
    assert two.claims(two.there) is None and two.status(two.there) == "stale"


def test_what_is_renewed_counts_from_then_however_seldom_others_look(two: Two):
    two.claims(two.there)
    for _ in range(12):
        assert two.claims(two.here) is None
        two.world.pass_(BEAT)
        assert two.beats(two.there)
    two.world.pass_(1e5)
    assert two.status(two.here) == "running"


def test_a_machine_that_stands_still_unnoticed_is_believed_once_it_renews(two: Two):
    two.claims(two.there)
    two.claims(two.here)
    for _ in range(9):
        two.world.pass_(BEAT)
        two.there.machine.running -= BEAT
    assert two.status(two.here) == "stale"
    two.world.pass_(1e-3)
    assert two.beats(two.there)
    assert two.status(two.here) == "running" and two.claims(two.here) is None
    two.world.pass_(LEASE - 1)
    assert two.claims(two.here) is None


def test_a_sleep_is_nobodys_time(two: Two):
    """Both processes of a laptop wake together, and the first must not take what the other holds."""
    other = Process(two.here.machine)
    two.claims(two.here)
    two.world.pass_(10)
    two.world.time += 1e5
    two.here.machine.boots += 1
    assert two.claims(other) is None and two.beats(two.here)
    two.world.pass_(LEASE - 1)
    assert two.claims(other) is None
    two.world.pass_(2)
    assert two.claims(other) == 2


def test_long_claims_lapse_though_the_machine_is_started_every_day(two: Two):
    two.claims(two.here, lease=24 * 3600.0)
    taken: list[bool] = []
    for day in range(4):
        two.here.machine.boots, two.here.machine.running = day + 1, 1.0
        two.here = Process(two.here.machine)
        taken.append(two.claims(two.here, 1) is not None)
        two.world.pass_(8.1 * 3600.0)
        two.claims(two.here, 10 + day)  # somebody works there, and its clock is written down
    assert taken == [False, False, False, True]


@pytest.mark.parametrize("jump", [3600.0, -3600.0, 3e7, -3e7])
def test_a_clock_that_is_set_changes_nothing(two: Two, jump: float):
    two.claims(two.here)
    two.here.wall_off += jump
    again = Process(two.here.machine, jump)  # starts after that
    assert two.status(again) == "running" and two.claims(again) is None
    two.world.pass_(LEASE - 1)
    assert two.claims(again) is None
    two.world.pass_(2)
    assert two.claims(again) == 2


@pytest.mark.parametrize(("off", "says"), [(3600.0, "60 min ahead of"), (-3600.0, "60 min behind"), (30.0, None)])
def test_clocks_that_differ_are_named_once(two: Two, caplog: pytest.LogCaptureFixture, off: float, says: str | None):
    two.there.wall_off = off
    with mock.patch("aqx.store.moment._told", set()):
        two.claims(two.there)
        for _ in range(3):
            two.claims(two.here)
            two.world.pass_(BEAT)
            two.beats(two.there)
    told = [record.getMessage() for record in caplog.records if "min " in record.getMessage()]
    assert len(told) == (says is not None)
    with two.world.seen_by(two.here):
        notes = [note for note in check_file(two.db.path).notes if "min " in note]
    assert len(notes) == (says is not None)
    if says:
        assert told == [f"aqx: {notes[0]}"]
        assert f"the clock of there is {says} this process's" in notes[0]


def test_a_process_whose_clock_differs_from_the_machines_is_told(two: Two, caplog: pytest.LogCaptureFixture):
    two.claims(two.here)
    with mock.patch("aqx.store.moment._told", set()):
        other = Process(two.here.machine, wall_off=7200.0)
        two.claims(other, 2)
        two.claims(other, 3)
    assert caplog.text.count("120 min behind this process's") == 1


# --- real processes


def test_a_process_is_gone_when_it_has_ended_and_not_before():
    code = "from aqx.store.lease import this_process\nprint(this_process(), flush=True)\ninput()"
    with start_python(code) as process:
        assert process.stdout
        name = process.stdout.readline().rstrip("\n")
        assert name != this_process() and not is_gone(name) and not is_gone(this_process())
        process.send_signal(signal.SIGSTOP)
        assert not is_gone(name)
        process.kill()
        while not is_gone(name):  # nobody has waited for it yet: it is a zombie
            time.sleep(0.01)
        process.wait()
        assert is_gone(name)
    where, number, began = name.rsplit(" ", 2)
    assert not is_gone(f"{where}x {number} {began}"), "of another machine nothing is known"
    assert is_gone(f"{this_process()}1"), "another process has its number now"


def claim_held(db: Database, process: str | None, name: str = "f(x)", lease: float = 600.0) -> int:
    ((row,), _) = claim_first(db, 1, [Wanted(None, name, "search")], seed=0, lease_seconds=lease, process=process)
    return row.trial_id


def test_what_a_killed_process_held_is_free_at_once(db_path: Path):
    db = Database(db_path, create=True)
    with start_python("from aqx.store.lease import this_process\nprint(this_process(), flush=True)\ninput()") as other:
        assert other.stdout
        name = other.stdout.readline().rstrip("\n")
        held, own, asked = claim_held(db, name), claim_held(db, this_process(), "g(x)"), claim_held(db, None, "h(x)")
        assert [trial.status for trial in take_snapshot(db, 1).trials] == ["running"] * 3
        other.kill()
        other.wait()
    take_snapshot(db, 2)
    assert count_trials(db, 1)["running"] == 3, "another task's"
    states = {trial.trial_id: trial.status for trial in take_snapshot(db, 1).trials}
    assert states == {held: "stale", own: "running", asked: "running"}
    assert get_trial(db, held).reason is None, "that says nothing of the function"
    assert finish(db, held, 0.5, {}).status == "done", "nor does it shut out a result"


WORKER = """
import contextlib, random, time, uuid
from datetime import timedelta
from aqx.store import Database, claim, clock, finish, heartbeat
from aqx.store.lease import kept_alive

path, log, off, how, lease = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4], float(sys.argv[5])
wall, now, jumps = clock.wall, clock.now, random.Random(off)
if how == "set":  # again and again
    clock.wall = lambda: wall() + timedelta(seconds=jumps.choice([-off, 0, off]))
elif how == "elsewhere":  # as on another machine
    clock.wall = lambda: wall() + timedelta(seconds=off)
    clock.machine = lambda: f"boot@{off}"
else:
    clock.now = lambda: now() + timedelta(seconds=off)

def write(*words):
    with open(log, "a") as file:
        print(*words, file=file, flush=True)

db = Database(path)
for number in random.Random(off).sample(range(12), 12):
    row = claim(db, 1, class_id=str(uuid.UUID(int=number)), name="f", seed=0, lease_seconds=lease)
    if row:
        write("begun", number, row.trial_id, time.monotonic())
        with kept_alive([row.trial_id], lambda id_: heartbeat(db, id_, lease), 0.1):
            time.sleep(0.15)
        finish(db, row.trial_id, float(number), {})
        write("ended", number, row.trial_id, time.monotonic())
"""


@pytest.mark.parametrize("how", ["off", "set", "elsewhere"])
def test_workers_whose_clocks_are_an_hour_off_train_nothing_twice(db_path: Path, tmp_path: Path, how: str):
    db, log = Database(db_path, create=True), tmp_path / "log"
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(start_python("import sys\n" + WORKER, str(db_path), str(log), str(off), how, "60"))
            for off in (0, 3600, -3600)
        ]
        for worker in workers:
            worker.communicate()
            assert worker.returncode == 0
    begun = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("begun")]
    assert sorted(begun, key=int) == [str(number) for number in range(12)]
    assert count_trials(db, 1) == {"done": 12, "running": 0, "queued": 0, "stale": 0, "pruned": 0, "failed": 0}


STOPPED = """
from aqx.store import Database, claim, finish, heartbeat
from aqx.store.lease import kept_alive
db, lease = Database(sys.argv[1]), float(sys.argv[2])
row = claim(db, 1, class_id=None, name="f(x)", seed=0, lease_seconds=lease)
with kept_alive([row.trial_id], lambda id_: heartbeat(db, id_, lease), lease / 10):
    print(row.trial_id, flush=True)
    input()
print(finish(db, row.trial_id, 0.5, {}).status, flush=True)
input()
"""


@pytest.mark.parametrize("overtaken", [False, True])
@pytest.mark.parametrize("lease", [1.5, pytest.param(30.0, marks=pytest.mark.slow)])
def test_a_worker_that_was_stopped_for_longer_than_its_lease_comes_back(db_path: Path, lease: float, overtaken: bool):
    db = Database(db_path, create=True)

    def take() -> int | None:
        row = claim(db, 1, class_id=None, name="f(x)", seed=0, lease_seconds=600.0)
        return row and row.trial_id

    with start_python("import sys\n" + STOPPED, str(db_path), str(lease)) as worker:
        assert worker.stdout and worker.stdin and worker.stdout.readline() == "1\n"
        with db.transaction():  # so that it does not stop while it has the database
            worker.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        while get_trial(db, 1).status == "running":
            time.sleep(0.05)
        assert time.monotonic() - stopped > 0.8 * lease
        second = take() if overtaken else None
        worker.send_signal(signal.SIGCONT)
        worker.stdin.write("\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "done\n"
        assert get_trial(db, 1).objective == 0.5
        if second:
            assert second == 2 and finish(db, second, 0.75, {}).status == "done", "nor is the other's lost"
        assert take() is None
        worker.communicate("\n")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_worker_that_was_killed_is_followed_after_its_lease(db_path: Path, elsewhere: bool):
    db, there = Database(db_path, create=True), "clock.machine = lambda: 'boot@there'\n" if elsewhere else ""
    code = "import sys\nfrom aqx.store import clock\n" + there + STOPPED
    with start_python(code, str(db_path), "2") as worker:
        assert worker.stdout and worker.stdout.readline() == "1\n"
        worker.kill()
        worker.wait()
    killed = time.monotonic()
    while (row := claim(db, 1, class_id=None, name="f(x)", seed=0, lease_seconds=600.0)) is None:
        time.sleep(0.05)
    assert row.trial_id == 2 and time.monotonic() - killed > 1
