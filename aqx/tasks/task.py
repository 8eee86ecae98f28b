"""`Task`: what a user tells aqx about a model, its data and its training."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import operator
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from aqx.duration import checked_limit
from aqx.errors import InputError, TaskError, one_line
from aqx.objective import Objective
from aqx.stopping import is_stop
from aqx.tasks.derived import Learnably, OneByOne, both_ways
from aqx.tasks.task_file import TaskFile, line_of, load_file, loaded_files, loading, siblings_importable
from aqx.tree import parse

BASELINES = (
    "relu(x)",
    "swish(x)",
    "gelu(x)",
    "elu(x)",
    "selu(x)",
    "mish(x)",
    "tanh(x)",
    "leakyrelu(x)",
    "softplus(x)",
)


@dataclass(frozen=True)
class FileReference:
    """Where a task was loaded from: the file's absolute path, the name in it, and the SHA-256 of its content."""

    path: str
    name: str
    digest: str


@dataclass(frozen=True)
class NamedReference:
    """Which of the tasks that a module has without binding them it is: `loader(name)` returns it."""

    loader: Callable[[str], Task]
    name: str


@dataclass(frozen=True)
class Task:
    """A model, its data and its training, as a function of the activation.

    A task loaded from a file, and one that stands in an importable module, can be pickled and sent to worker processes.

    Attributes:
        name: what the database calls this task.
        build_model: `build_model(act)` returns a Flax Linen module, `build_model(act, rngs)` an NNX one.
        batch: `batch()` returns one batch (x, y) of N examples, the one that Fisher features are computed on.
        loss: `loss(outputs [N, ...], y)` returns the loss of each example, shape [N]; `aqx.losses` has the usual ones.
        joint_loss: whether the loss of an example depends on the others in its batch (contrastive, normalised by the
            batch's tokens or advantages). The gradient at an example is then that of the whole batch's loss; what
            `loss` returns may be that as one number, the mean over the batch, too.
        apply: `apply(model, variables, x)` returns the outputs. Default `model.apply(variables, x)`; for an NNX model,
            whose variables are None, `model(x)`.
        init: `init(model, key, x)` returns the initial variables of a Linen model. Default `model.init(key, x)`, or
            with an `apply` the same calls of the model that `apply` makes, outside of whatever transforms it makes
            them in; give it where neither will do, or to start from weights of your own.
        train: `train(act, seed)` trains a model and returns its metrics as a dict of numbers, the objective among them.
        train_many: `train_many(acts, seeds)` trains K models with the members of a stack and a seed each, and returns
            an array [K] per metric; `aqx.population` makes it from a training that JAX can trace. Of `train` and
            `train_many` one is enough: the other is derived.
        objective: the metric that the search improves.
        direction: "maximize" or "minimize".
        baselines: names of known functions, trained first, to compare with.
        seed: seed of the initial weights that the Fisher features are computed at.
        time_limit: seconds that one training may take, compilation included, before its process is ended and the trial
            has failed; None for any. aqx keeps it where it runs the loop in processes of its own: with one, `search`
            and `confirm` train in a process of their own even for one worker.
        version: of the training, kept with every result: give another one when results change. By default a digest of
            the code that the training runs.
        learnable: "layer" or "channel" to train with learnable constants: `train` is then called with an
            `aqx.linen.Learning`, which is an `aqx.linen.Act` in each Linen module that calls it. Functions without
            constants are trained as they are. The built-in tasks return what was learnt among their metrics.

    Raises:
        TaskError: an argument has the wrong type or value.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from aqx import losses
        >>> from aqx.tasks import Task
        >>> def build_model(act):
        ...     return nn.Sequential([nn.Dense(16), act, nn.Dense(1)])
        >>> x = jnp.linspace(-1, 1, 32)[:, None]
        >>> task = Task("parabola", build_model, batch=lambda: (x, x**2), loss=losses.mean_squared_error)
        >>> task.objective, task.direction, task.baselines[:2]
        ('val_acc', 'maximize', ('relu(x)', 'swish(x)'))
    """

    name: str
    build_model: Callable[..., Any]
    batch: Callable[[], Any]
    loss: Callable[..., Any]
    apply: Callable[..., Any] | None = None
    train: Callable[..., Any] | None = None
    train_many: Callable[..., Any] | None = None
    objective: str = "val_acc"
    direction: Literal["maximize", "minimize"] = "maximize"
    baselines: Sequence[str] = BASELINES
    seed: int = 0
    time_limit: float | int | None = None
    init: Callable[..., Any] | None = None
    joint_loss: bool = False
    version: str | int | None = None
    learnable: Literal["layer", "channel"] | None = None
    # Set by `refer_to`; a copy made by `dataclasses.replace` starts without it, as nothing holds that copy.
    reference: FileReference | NamedReference | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for argument in ("name", "objective"):
            value = getattr(self, argument)
            if not isinstance(value, str) or not value.strip() or not value.isprintable():
                raise TaskError(f"{argument}={value!r} is not a name; give a string of one line")
        if self.version is not None and (not str(self.version).strip() or not str(self.version).isprintable()):
            raise TaskError(f"version={self.version!r} is no version; give a short string, such as '2'")
        object.__setattr__(self, "version", None if self.version is None else str(self.version))
        for argument in ("build_model", "batch", "loss", "apply", "train", "train_many", "init"):
            value = getattr(self, argument)
            if not callable(value) and not (value is None and argument not in ("build_model", "batch", "loss")):
                raise TaskError(f"{argument}={value!r} is not callable; give a function")
        if not isinstance(self.joint_loss, bool):
            raise TaskError(f"joint_loss={self.joint_loss!r} is neither True nor False")
        try:
            Objective(self.objective, self.direction)
            object.__setattr__(self, "time_limit", checked_limit(self.time_limit))
        except InputError as error:
            raise TaskError(str(error)) from None
        object.__setattr__(self, "baselines", _canonical(self.baselines))
        object.__setattr__(self, "seed", _seed(self.seed))
        if self.learnable not in (None, "layer", "channel"):
            raise TaskError(f"learnable={self.learnable!r} is unknown; give 'layer', 'channel' or None")
        train, train_many = both_ways(self.train, self.train_many)
        if self.learnable:
            train, train_many = (each and Learnably(each, self.learnable) for each in (train, train_many))
        object.__setattr__(self, "train", train)
        object.__setattr__(self, "train_many", train_many)

    @property
    def trains_together(self) -> bool:
        """Whether the task has a `train_many` of its own, not one that trains the members one after another."""
        many = self.train_many.train if isinstance(self.train_many, Learnably) else self.train_many
        return many is not None and not isinstance(many, OneByOne)

    @property
    def goal(self) -> Objective:
        """The objective with its direction."""
        return Objective(self.objective, self.direction)

    def identity(self) -> dict[str, str | int | float]:
        """Return what has to agree for stored spectra and trials to belong to this task."""
        identity = {"name": self.name, "objective": self.objective, "direction": self.direction, "seed": self.seed}
        return identity | ({"learnable": self.learnable} if self.learnable else {})

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return reduce_task(self)


def _canonical(baselines: object) -> tuple[str, ...]:
    if isinstance(baselines, str) or not isinstance(baselines, Iterable):
        raise TaskError(f"baselines={baselines!r} is not a list; give names such as ('relu(x)', 'swish(x)')")
    names = []
    for name in baselines:
        if not isinstance(name, str):
            raise TaskError(f"baselines: {name!r} is not a name; give strings such as 'relu(x)'")
        try:
            names.append(str(parse(name)))
        except InputError as error:
            raise TaskError(f"baselines: {str(error).splitlines()[0]}") from error
    return tuple(dict.fromkeys(names))


def _seed(seed: Any) -> int:
    try:
        value = operator.index(seed)
    except TypeError:
        raise TaskError(f"seed={seed!r} is not an integer; give one from 0 to 2**32 - 1") from None
    if isinstance(seed, bool) or not 0 <= value < 2**32:
        raise TaskError(f"seed={seed!r} cannot seed JAX; give an integer from 0 to 2**32 - 1")
    return value


def refer_to(task: Task, reference: FileReference | NamedReference) -> Task:
    """Note in a task where another process finds it, and return it."""
    object.__setattr__(task, "reference", reference)
    return task


def reduce_task(task: Task) -> tuple[Callable[..., Task], tuple[str, ...]]:
    """Return how to pickle a task: by its reference, by its file, or by a module that binds it.

    Raises:
        TaskError: nothing holds this task.
    """
    reference = task.reference or find_file(task)
    if isinstance(reference, NamedReference):
        return reference.loader, (reference.name,)
    if reference is not None:
        return restore_from_file, (reference.path, reference.name, reference.digest)
    modules = [(name, module) for name, module in list(sys.modules.items()) if name not in ("__main__", "__mp_main__")]
    for module_name, module in modules:
        for name in names_of(task, module):
            return restore_from_module, (module_name, name)
    raise TaskError(
        f"task {task.name!r} cannot be sent to another process, as no module or file holds it; "
        "bind it to a name at the top of a file, and load it with load_task('file.py:name')"
    )


def restore_from_file(path: str, name: str, digest: str) -> Task:
    """Unpickle a task of a file, which must not have changed since it was pickled."""
    with loading:
        file = load_file(path, digest)
        return task_in(file, name)


def restore_from_module(module: str, name: str) -> Task:
    """Unpickle a task of an importable module."""
    try:
        task = getattr(importlib.import_module(module), name, None)
    except BaseException as error:
        if is_stop(error):
            raise
        raise TaskError(f"task {name!r} cannot be loaded: importing {module} raised {one_line(error)}") from error
    if not isinstance(task, Task):
        raise TaskError(f"task {name!r} cannot be loaded: module {module} does not hold it under that name")
    return task


def task_in(file: TaskFile, name: str) -> Task:
    """Return the task that a file binds to a name, or that a function of this name makes."""
    if name in file.tasks:
        return file.tasks[name]
    found = getattr(file.module, name, None) if name else None
    if found is None:
        held = [key for key, value in vars(file.module).items() if isinstance(value, Task)]
        has = f"it has {', '.join(held)}" if held else "it binds no Task at its top level"
        raise TaskError(f"task file {file.path} has no {name!r}; {has}")
    if inspect.isfunction(found):
        found = _call(found, file, name)
    elif not isinstance(found, Task):
        raise TaskError(f"{name!r} in task file {file.path} is of type {_kind(found)}, not an aqx.Task")
    if found.reference is None:
        refer_to(found, FileReference(file.path, name, file.digest))
    file.tasks[name] = found
    return found


def _kind(value: Any) -> str:
    return "module" if isinstance(value, ModuleType) else type(value).__name__


def _call(function: Callable[[], Any], file: TaskFile, name: str) -> Task:
    if any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in _parameters(function)):
        raise TaskError(f"{name!r} in task file {file.path} needs arguments; give a Task, or a function without any")
    what = f"{name}() in task file {file.path}"
    try:
        with siblings_importable(os.path.dirname(file.path)):
            task = function()
    except BaseException as error:
        if is_stop(error):
            raise
        raise TaskError(f"{what} raised {one_line(error)}{line_of(error, file.path)}") from error
    if not isinstance(task, Task):
        raise TaskError(f"{what} returned a value of type {type(task).__name__}, not an aqx.Task")
    return task


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def find_file(task: Task) -> FileReference | None:
    """Return the file of a task nobody asked for by name: that of a loaded task file, or of the running script."""
    for file in loaded_files.values():
        for name in names_of(task, file.module):
            return FileReference(file.path, name, file.digest)
    main = sys.modules["__main__"]
    if getattr(main, "__file__", None) and (names := names_of(task, main)):
        path = os.path.abspath(str(main.__file__))
        return FileReference(path, names[0], hashlib.sha256(Path(path).read_bytes()).hexdigest())
    return None


def names_of(task: Task, module: Any) -> list[str]:
    """Return the names that a module binds a task to."""
    return [name for name, value in list(getattr(module, "__dict__", {}).items()) if value is task]
