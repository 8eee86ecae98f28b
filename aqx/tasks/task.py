"""`Task`: what a user tells aqx about a model, its data and its training."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from aqx.errors import InputError, TaskError
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
class Task:
    """A model, its data and its training, as a function of the activation.

    A task loaded from a file, and one that stands in an importable module, can be pickled and sent to worker processes.

    Attributes:
        name: what the database calls this task.
        build_model: `build_model(act)` returns a Flax Linen module, `build_model(act, rngs)` an NNX one.
        batch: `batch()` returns one batch (x, y) of N examples, the one that Fisher features are computed on.
        loss: `loss(outputs [N, ...], y)` returns the loss of each example, shape [N]; `aqx.losses` has the usual ones.
        apply: `apply(model, variables, x)` returns the outputs. Default `model.apply(variables, x)`; for an NNX model,
            whose variables are None, `model(x)`.
        train: `train(act, seed)` trains a model and returns its metrics as a dict of numbers, the objective among them.
        objective: the metric that the search improves.
        direction: "maximize" or "minimize".
        baselines: names of known functions, trained first, to compare with.
        seed: seed of the initial weights that the Fisher features are computed at.

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
    objective: str = "val_acc"
    direction: Literal["maximize", "minimize"] = "maximize"
    baselines: Sequence[str] = BASELINES
    seed: int = 0
    # Set by `load_task`; a copy made by `dataclasses.replace` starts without it, as the file does not hold that copy.
    reference: FileReference | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for argument in ("name", "objective"):
            value = getattr(self, argument)
            if not isinstance(value, str) or not value.strip() or not value.isprintable():
                raise TaskError(f"{argument}={value!r} is not a name; give a string of one line")
        for argument in ("build_model", "batch", "loss", "apply", "train"):
            value = getattr(self, argument)
            if not callable(value) and not (value is None and argument in ("apply", "train")):
                raise TaskError(f"{argument}={value!r} is not callable; give a function")
        if self.direction not in ("maximize", "minimize"):
            raise TaskError(f"direction={self.direction!r} is unknown; give 'maximize' or 'minimize'")
        object.__setattr__(self, "baselines", _canonical(self.baselines))
        object.__setattr__(self, "seed", _seed(self.seed))

    def identity(self) -> dict[str, str | int | float]:
        """Return what has to agree for stored spectra and trials to belong to this task."""
        return {"name": self.name, "objective": self.objective, "direction": self.direction, "seed": self.seed}

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        from aqx.tasks.loading import reduce_task

        return reduce_task(self)


def one_line(error: BaseException) -> str:
    """Return an exception as one line: its kind and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


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
