"""Is everything fit for a search? The machine, what is installed, a task, and a database file."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from aqx.errors import AqxError, InputError
from aqx.machine import cores, free_memory, install_command, nvidia_smi, version_of
from aqx.operators import own_operators
from aqx.store import Database
from aqx.store.encoding import differences
from aqx.store.health import FileHealth, check_file
from aqx.store.tasks import find_task

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "duckdb", "scikit-learn", "umap-learn")
LOW_MEMORY, LOW_DISK = 2**30, 2**28  # bytes: the paper's space takes most of a GiB to enumerate, and 400 MB to keep
_HIDING = ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")
_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PJRT_NPROC", "XLA_FLAGS", *_HIDING)
_CACHE = "JAX_COMPILATION_CACHE_DIR"


@dataclass
class Diagnosis:
    """What was seen, and what is wrong with it.

    Attributes:
        versions: of Python, aqx and the libraries it stands on; None where one is missing.
        devices: what JAX computes on; None where nobody looked.
        gpus: NVIDIA GPUs that the driver knows, whether JAX uses them or not.
        traced: which form a traced activation has on them, "kernel" or "switch", and why; empty without a device.
        cores: how many this process may use.
        settings: variables of the environment that change how many threads and which devices are used.
        memory_bytes: memory that is free; None where the system does not tell.
        disk_bytes: room that is free where the database lies, or in the working folder.
        compiled: the folder in which compiled programs are kept; None where none are kept.
        extras: per extra of aqx which of its packages are missing.
        task: what was seen of the task, or None where none was asked about.
        file: what was seen of the database, or None where none was asked about.
        problems: what is wrong, a line each, with what to do; none if all is well.
        notes: what is worth knowing, a line each.
    """

    versions: dict[str, str | None] = field(default_factory=dict)
    devices: list[str] | None = None
    gpus: list[str] = field(default_factory=list)
    traced: str = ""
    cores: int = 0
    settings: dict[str, str] = field(default_factory=dict)
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    compiled: str | None = None
    extras: dict[str, list[str]] = field(default_factory=dict)
    task: str | None = None
    file: FileHealth | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def diagnose(
    db: str | os.PathLike[str] | None = None,
    task: str | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    *,
    quick: bool = False,
) -> Diagnosis:
    """Look at this machine and installation, and where they are given at a database and a task; change nothing.

    Args:
        db: a database file.
        task: a built-in task, or "path/to/file.py:name"; what it promises is tried, its training left out.
        progress: called as progress(done, total, note) while the file is read.
        quick: leave out what takes JAX, which is the devices and a task.

    Raises:
        InputError: a task is to be tried quickly.

    Example:
        >>> from aqx.doctor import diagnose
        >>> diagnose(quick=True).versions["aqx"]
        '0.1.0'
    """
    if quick and task is not None:
        raise InputError("quick leaves out what takes JAX, as a task does; leave out one of the two")
    seen = Diagnosis(cores=cores())
    seen.settings = {name: os.environ[name] for name in _SETTINGS if name in os.environ}
    _look_at_versions(seen)
    if not quick:
        _look_at_devices(seen)
    _look_at_room(seen, Path(db or ".").absolute().parent if db else Path.cwd())
    if db is not None:
        seen.file = check_file(db, progress)
        seen.problems += [f"{db}: {problem}" for problem in seen.file.problems]
        seen.notes += [f"{db}: {note}" for note in seen.file.notes]
    if task is not None:
        _look_at_task(seen, task)  # which may register operators
    if db is not None and not quick and seen.file is not None and seen.file.counts and not seen.file.problems:
        _look_at_operators(seen, Database(seen.file.path))
    return seen


def _look_at_versions(seen: Diagnosis) -> None:
    seen.versions = {"python": platform.python_version(), **{name: version_of(name) for name in ("aqx", *LIBRARIES)}}
    try:
        requirements = metadata.requires("aqx") or []
    except metadata.PackageNotFoundError:
        seen.notes.append("aqx is not installed but run from its folder, so its requirements are not known here")
        return
    for text in requirements:
        needed = Requirement.of(text)
        if needed.extra is None and needed.is_missing():
            have = version_of(needed.name)
            have = f"is {have}, too old" if have else "is not installed"
            seen.problems.append(f"{needed.name} {have}; pip install -U '{text.partition(';')[0].strip()}'")
        elif needed.extra and not needed.extra.startswith("test"):
            missing = [text.partition(";")[0].strip()] if needed.is_missing() else []
            seen.extras[needed.extra] = seen.extras.get(needed.extra, []) + missing


@dataclass(frozen=True)
class Requirement:
    """What a package's metadata say that it needs.

    Attributes:
        name: of the package that is needed.
        parts: extras of that package, which are needed with it.
        least: the oldest version that serves, or None for any.
        extra: the extra of the package itself for which it is needed, or None for always.
    """

    name: str
    parts: frozenset[str]
    least: str | None
    extra: str | None

    @classmethod
    def of(cls, text: str) -> Requirement:
        """Read e.g. `jax[cuda12]>=0.10; extra == "cuda"`.

        Example:
            >>> Requirement.of('jax[cuda12]>=0.10; extra == "cuda"')
            Requirement(name='jax', parts=frozenset({'cuda12'}), least='0.10', extra='cuda')
        """
        package, _, marker = text.partition(";")
        name = re.match(r"[\w.-]+", package)
        parts = re.search(r"\[(.*?)\]", package)
        least = re.search(r">=\s*([\d.]+)", package)
        extra = re.search(r"""extra\s*==\s*['"]([\w.-]+)""", marker)
        return cls(
            name[0] if name else package.strip(),
            frozenset(part.strip() for part in parts[1].split(",")) if parts else frozenset(),
            least[1] if least else None,
            extra[1] if extra else None,
        )

    def is_missing(self) -> bool:
        """Whether the package, or one that its needed extras need, is not there or too old."""
        version = version_of(self.name)
        if version is None or (self.least is not None and _numbers(version) < _numbers(self.least)):
            return True
        inner = map(Requirement.of, metadata.requires(self.name) or [] if self.parts else [])
        return any(needed.is_missing() for needed in inner if needed.extra in self.parts)


def _numbers(version: str) -> tuple[int, ...]:
    """A version's leading numbers, without zeros at the end: `2.10rc1` as (2, 10), `2.0` as (2,)."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _look_at_devices(seen: Diagnosis) -> None:
    import jax  # takes a second

    from aqx import kernel

    seen.gpus, seen.devices = nvidia_gpus(), []
    try:
        found = jax.devices()
    except RuntimeError as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        seen.problems.append(f"JAX finds no device ({reason}); unset JAX_PLATFORMS, or set it to what there is")
        return
    seen.devices = [f"{device.platform}:{device.id} {device.device_kind}" for device in found]
    seen.traced = f"{kernel.form_in_use()} ({kernel.reason()})"
    if not seen.gpus or any(device.platform in ("gpu", "cuda") for device in found):
        return
    hidden = [name for name in _HIDING if name in os.environ]
    many = f"{len(seen.gpus)} NVIDIA GPU" + "s" * (len(seen.gpus) > 1)
    if hidden:
        seen.notes.append(f"{many} not used, as {' and '.join(f'{n}={os.environ[n]}' for n in hidden)} may say so")
    else:
        seen.problems.append(f"{many} here, but JAX sees only {seen.devices[0]}: pip install 'aqx[cuda]'")
        if (command := install_command("cuda")) not in seen.problems[-1]:
            seen.notes.append(f"aqx runs from a checkout, so what is lacking is installed by: {command}")


def nvidia_gpus(driver: str = "/proc/driver/nvidia/gpus") -> list[str]:
    """Return the NVIDIA GPUs of this machine, as its driver or `nvidia-smi` lists them.

    Args:
        driver: the folder in which the driver has a folder for each.
    """
    found = []
    for file in sorted(Path(driver).glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", file.read_text(errors="replace"), re.M)
        found.append(match[1].strip() if match else "an NVIDIA GPU")
    return found or re.findall(r"^GPU \d+: (.+?)(?: \(UUID.*)?$", nvidia_smi(), re.M)


def _look_at_room(seen: Diagnosis, folder: Path) -> None:
    seen.memory_bytes = free_memory()
    if seen.memory_bytes is not None and seen.memory_bytes < LOW_MEMORY:
        seen.notes.append(f"only {seen.memory_bytes / 2**20:,.0f} MiB of memory are free")
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    seen.disk_bytes = shutil.disk_usage(folder).free
    if seen.disk_bytes < LOW_DISK:
        seen.problems.append(f"only {seen.disk_bytes / 2**20:,.0f} MiB are free on the disk of {folder}; make room")
    seen.compiled = os.environ.get(_CACHE)
    if seen.compiled and not os.access(seen.compiled, os.W_OK):
        seen.notes.append(f"compiled programs cannot be kept in {seen.compiled}; every command compiles anew")


def _look_at_operators(seen: Diagnosis, db: Database) -> None:
    if not own_operators():
        return
    from aqx.enumeration.meanings import check_meanings  # brings JAX

    try:
        check_meanings(db)
    except AqxError as error:
        seen.problems.append(str(error))


def _look_at_task(seen: Diagnosis, reference: str) -> None:
    from aqx.tasks import check_task, load_task  # bring JAX

    try:
        task = load_task(reference)
        report = check_task(task)
    except AqxError as error:
        seen.problems.append(f"task {reference}: {error}")
        return
    seen.task = f"{task.name}: {report.kind}, {report.parameters:,} parameters, {task.direction} {task.objective}"
    if seen.file is None or seen.file.problems or not seen.file.counts:
        return
    stored = find_task(Database(seen.file.path), task.name)
    if stored is None:
        seen.notes.append(f"task {task.name} is new to {seen.file.path}")
    elif different := differences(stored.identity, task.identity()):
        seen.problems.append(
            f"task {task.name} in {seen.file.path} differs from {reference} in {different}; "
            "give the changed task another name, or use another database"
        )
