"""Results on their way: small files beside the database, until some transaction takes them in.

Who has a result and must wait for the lock writes it down first, so that it is lost with no process, and whoever has
the lock next stores it along with their own, so that many wait as long as one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from aqx.errors import InputError
from aqx.metrics import decode_metrics, encode_metrics
from aqx.store import clock
from aqx.store.driver import duckdb
from aqx.store.endings import Encoded, Ending, encoded, store_ending
from aqx.store.lock import is_running
from aqx.store.trial_rows import Purpose, Status, TrialRow
from aqx.writing import replacing

Answers = dict[int, TrialRow | InputError]

_ATTEMPTS = 10
_ANSWER_SECONDS = 3600.0  # how long an answer is kept for a process that has died meanwhile
_log = logging.getLogger("aqx")


@dataclass
class Note:
    """How some trials ended, to be stored together.

    Attributes:
        path: of the file that it is written to.
        identity: of the database.
        task_id: the task that the trials must belong to; None for any.
        finished_at: when they ended.
        endings: by trial, from `encoded`.
        waits: host and process that want to hear of it; None where nobody waits any more.
        is_written: whether the file was written.
    """

    path: Path
    identity: str
    task_id: int | None
    finished_at: datetime
    endings: dict[int, Encoded]
    waits: tuple[str, int] | None
    is_written: bool = False

    @classmethod
    def of(cls, database: Path, identity: str, task_id: int | None, endings: Mapping[int, Ending]) -> Note:
        """Make a note that is not written yet; its process waits for what becomes of it.

        Raises:
            InputError: a metric cannot be stored.
        """
        texts = {trial_id: encoded(ending) for trial_id, ending in endings.items()}
        path = folder_of(database) / f"{time.time_ns()}-{uuid.uuid4().hex}.json"
        return cls(path, identity, task_id, clock.now(), texts, (os.uname().nodename, os.getpid()))

    @classmethod
    def read(cls, path: Path) -> Note:
        """Read a note.

        Raises:
            ValueError: it is none.
        """
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            endings = {int(trial_id): ending for trial_id, ending in kept["endings"].items()}
            waits = kept["waits"] and tuple(kept["waits"])
            finished_at = datetime.fromisoformat(kept["finished_at"])
            return cls(path, kept["identity"], kept["task_id"], finished_at, endings, waits, is_written=True)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no results of aqx") from error

    def write(self) -> None:
        """Write it down, for good: all of it or nothing.

        Raises:
            OSError: it cannot be written.
        """
        text = json.dumps(
            {
                "identity": self.identity,
                "task_id": self.task_id,
                "finished_at": self.finished_at.isoformat(),
                "endings": self.endings,
                "waits": self.waits,
            }
        )
        folder = self.path.parent
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                folder.mkdir(exist_ok=True)
                with replacing(self.path) as draft:
                    draft.write_text(text, encoding="utf-8")
                break
            except OSError:  # whoever empties the folder removes it
                if attempt == _ATTEMPTS or folder.is_dir():
                    raise
        for each in (folder, folder.parent):
            _sync_folder(each)
        self.is_written = True

    def leave(self) -> None:
        """Leave it to whoever comes next; nobody waits any more.

        Raises:
            OSError: it cannot be written.
        """
        self.waits = None
        self.write()

    @property
    def is_answered(self) -> bool:
        """Whether somebody has taken it in."""
        return self.is_written and not self.path.exists()

    def store(self, con: duckdb.DuckDBPyConnection) -> Answers:
        """Store what it says, inside the caller's transaction; an error stands for what cannot be stored."""
        answers: Answers = {}
        for trial_id, ending in self.endings.items():
            try:
                answers[trial_id] = store_ending(
                    con, self.task_id, trial_id, ending, self.finished_at, from_file=self.is_written
                )
            except InputError as error:
                answers[trial_id] = error
        return answers

    def answer(self, answers: Answers) -> None:
        """Tell who wrote it what was stored, and put it away; what was refused is kept beside it."""
        refused = {trial_id: str(answer) for trial_id, answer in answers.items() if isinstance(answer, InputError)}
        if self._is_awaited:
            texts = {trial_id: _as_text(answer) for trial_id, answer in answers.items()}
            # Nobody reads it before the note is gone, so it need not come into its place at one go.
            self.path.with_suffix(".answer").write_text(json.dumps(texts), encoding="utf-8")
        if refused:
            _log.warning("aqx: %s", next(iter(refused.values())))
            os.replace(self.path, self.path.with_suffix(".refused"))
        else:
            self.path.unlink()

    @property
    def _is_awaited(self) -> bool:
        if self.waits is None:
            return False
        host, pid = self.waits
        return host != os.uname().nodename or is_running(pid)

    def take_answer(self) -> Answers:
        """Read what became of it, once it `is_answered`."""
        path = self.path.with_suffix(".answer")
        answers = {
            int(trial_id): _of_text(text) for trial_id, text in json.loads(path.read_text(encoding="utf-8")).items()
        }
        self.discard()
        return answers

    def discard(self) -> None:
        """Remove it and what came of it."""
        for suffix in (".json", ".refused", ".answer"):
            self.path.with_suffix(suffix).unlink(missing_ok=True)
        _remove_empty(self.path.parent)


def folder_of(database: Path) -> Path:
    """Return the folder of what waits to come into a database."""
    return database.with_name(database.name + ".pending")


def waiting(database: Path, suffix: str = ".json") -> list[Path]:
    """Return the files of notes that nobody has taken in, the earliest first; or of those that were ".refused"."""
    try:
        names = sorted(os.listdir(folder_of(database)))
    except OSError:
        return []
    return [folder_of(database) / name for name in names if name.endswith(suffix)]


def notes(database: Path, older_than: float | int = 0) -> list[str]:
    """Return what people should know of results that are not in a database, a line each.

    Args:
        database: the file.
        older_than: seconds: others may only be on their way.
    """
    lines: list[str] = []
    late = [path for path in waiting(database) if _age(path) >= older_than]
    if late:
        lines.append(
            f"results of {len(late)} trainings or batches wait in {folder_of(database)}: they come into the database "
            "with the next command that may write it"
        )
    if refused := waiting(database, ".refused"):
        lines.append(
            f"{len(refused)} results were refused, as their trials had others or belong to another state of the "
            f"database: see {refused[0]}; remove the file once it is settled"
        )
    return lines


def take_in(
    con: duckdb.DuckDBPyConnection, database: Path, identity: str, leave: Note | None = None
) -> list[tuple[Note, Answers]]:
    """Store what waits for a database but for one note, inside the caller's transaction; `settle` once committed."""
    taken: list[tuple[Note, Answers]] = []
    for path in waiting(database):
        if leave and path == leave.path:
            continue
        try:
            note = Note.read(path)
        except FileNotFoundError:
            continue
        except (ValueError, OSError) as error:
            _log.warning("aqx: %s is left where it is: %s", path, error)
            continue
        if note.identity == identity:
            taken.append((note, note.store(con)))
    return taken


def settle(taken: list[tuple[Note, Answers]], database: Path) -> None:
    """Put away what has come into the database."""
    for note, answers in taken:
        with contextlib.suppress(OSError):  # it is stored; who comes next puts it away
            note.answer(answers)
    if taken:
        for path in waiting(database, ".answer"):
            if _age(path) > _ANSWER_SECONDS:
                path.unlink(missing_ok=True)
        _remove_empty(folder_of(database))


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:  # gone meanwhile
        return -1.0


def _as_text(answer: TrialRow | InputError) -> dict[str, Any]:
    if isinstance(answer, InputError):
        return {"refused": str(answer)}
    columns = asdict(answer)
    times = {key: value.isoformat() for key, value in columns.items() if isinstance(value, datetime)}
    return {**columns, **times, "metrics": encode_metrics(answer.metrics)}


def _of_text(text: dict[str, Any]) -> TrialRow | InputError:
    if "refused" in text:
        return InputError(text["refused"])
    times = {key: value and datetime.fromisoformat(value) for key, value in text.items() if key.endswith("_at")}
    words = {"status": Status(text["status"]), "purpose": Purpose(text["purpose"])}
    return TrialRow(**{**text, **times, **words, "metrics": decode_metrics(text["metrics"])})


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
