"""`check_task`: does a task keep its contract? One clear line where it does not."""

from __future__ import annotations

import inspect
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aqx.activation import Activation, activation, stack
from aqx.errors import TaskError
from aqx.numerics.settings import own_settings
from aqx.stopping import is_stop
from aqx.tasks.derived import Alone
from aqx.tasks.guard import guard
from aqx.tasks.inputs import not_applicable, rectified
from aqx.tasks.loading import as_task
from aqx.tasks.model import apply_model, build_model, losses_of
from aqx.tasks.task import Task
from aqx.tree import parse

_ANOTHER = {1: "sin(x)", 2: "mul(sin(x),y)"}  # for a task that has no other baseline than relu(x)
_SECONDS, _SHARE = 0.02, 0.2  # of compiling, and of that of the first training, below which nobody minds


@dataclass(frozen=True)
class CheckReport:
    """What `check_task` saw; `str(report)` is a table of it for people.

    Attributes:
        task: the task's name.
        kind: "Flax Linen" or "Flax NNX".
        parameters: number of trainable weights.
        x: shapes and types of the batch's inputs.
        y: shapes and types of the batch's labels.
        outputs: shape and type of the model's outputs.
        losses: mean loss of the untrained model, per baseline; nan and inf are possible, ReLU aside.
        training: whether the task has its own training, and how it went where it was run.
        metrics: what `train` returned, empty where it was not run.
        functions: which the model takes: of one input, of two, or of both.
    """

    task: str
    kind: str
    parameters: int
    x: str
    y: str
    outputs: str
    losses: dict[str, float]
    training: str
    metrics: dict[str, float]
    functions: str = ""

    def __str__(self) -> str:
        rows = [
            ("task", self.task),
            ("model", f"{self.kind}, {self.parameters:,} parameters"),
            *([("functions", self.functions)] if self.functions else []),
            ("batch x", self.x),
            ("batch y", self.y),
            ("outputs", self.outputs),
            *((f"loss {name}", f"{value:.4g}") for name, value in self.losses.items()),
            ("train", self.training),
            *((name, f"{value:.4g}") for name, value in self.metrics.items()),
        ]
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


@own_settings()
def check_task(task: Task | str, *, run_training: bool = False, second: bool = False) -> CheckReport:
    """Try everything that a task promises, training only on request.

    Args:
        task: the task.
        run_training: also run `task.train` once, with ReLU, and look at the metrics; and `train_many` with two members.
        second: then also train a second function of ReLU's shape: does `train` use it, and does it compile anew?

    Returns:
        The facts: model, shapes, the untrained model's loss per baseline, training.

    Raises:
        TaskError: the batch is not (x, y), its sizes differ or it has nan; `build_model`, `apply`, `loss` or `train`
            raises or returns the wrong thing, or ignores the activation; the loss is not per example, or not finite
            for ReLU.

    Example:
        >>> from aqx.tasks import check_task, load_task
        >>> check_task(load_task("mnist1d")).parameters
        15210
    """
    task = as_task(task)
    x, y, n = check_batch(task)
    taken = [1]
    if not not_applicable(task, 2, x):  # most models end here, before anything is initialised
        taken = [2] if not_applicable(task, 1, x) else [1, 2]
    usual = rectified(taken[0])
    model, variables, outputs, per_example = _try_model(task, usual, x, y, n)
    check_finite(per_example)
    losses = {usual: float(np.mean(per_example))}
    same = True
    for name in dict.fromkeys([*task.baselines, _ANOTHER[taken[0]]]):
        if parse(name).inputs not in taken:
            raise TaskError(f"baselines: {name!r} is {not_applicable(task, parse(name).inputs, x)}")
        if name not in losses:
            tried = _try_model(task, name, x, y, n)
            same = same and np.array_equal(tried[-1], per_example) and _computes(task, tried[:2], x) is not None
            same = same and _computes(task, tried[:2], x) == _computes(task, (model, variables), x)
            if name in task.baselines:
                losses[name] = float(np.mean(tried[-1]))
    if same:
        raise TaskError(
            "build_model ignores the activation: the model computes the same with every function; build it with the "
            "one that it is given, as in build_model=lambda act: CNN(act=act), and call self.act(x) in the model"
        )
    training, metrics = _check_training(task, usual, run_training or second, second)
    return CheckReport(
        task=task.name,
        kind="Flax NNX" if variables is None else "Flax Linen",
        parameters=_count_parameters(model, variables),
        x=_describe(x),
        y=_describe(y),
        outputs=_describe(outputs),
        losses=losses,
        training=training,
        metrics=metrics,
        functions=" and ".join({1: "of one input", 2: "of two inputs (gated units)"}[inputs] for inputs in taken),
    )


def _try_model(task: Task, name: str, x: Any, y: Any, n: int) -> tuple[Any, Any, Any, np.ndarray]:
    """Build the model with one activation; return it with its variables, outputs and the loss of each example."""
    model, variables = guard("build_model", lambda: build_model(task, activation(name), x))
    what = "the model" if task.apply is None else "apply"
    outputs = guard(what, lambda: apply_model(task, model, variables, x))
    return model, variables, outputs, check_loss(task, outputs, y, n)


def _computes(task: Task, built: tuple[Any, Any], x: Any) -> str | None:
    """The program of a model, by which one that starts with a head of zeros is told from one that ignores `act`."""
    try:
        text = str(jax.make_jaxpr(lambda x: apply_model(task, *built, x))(x))
    except Exception as error:  # a model need not be such that it can be traced
        if is_stop(error):
            raise
        return None
    return re.sub(r"0x[0-9a-f]+", "", text)


def check_batch(task: Task) -> tuple[Any, Any, int]:
    """Draw the task's batch; return its inputs, its labels and how many examples it has.

    Raises:
        TaskError: it is not (x, y), its sizes differ, or it has nan.
    """
    batch = guard("batch", task.batch)
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"{len(batch)} values" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise TaskError(f"batch must return (x, y), but it returned {got}")
    sizes = []
    for part, value in zip("xy", batch, strict=True):
        for leaf in jax.tree.leaves(value):
            array = np.asarray(leaf)
            if array.ndim == 0 or array.dtype.kind not in "biufcV":
                raise TaskError(f"batch: {part} must be arrays of numbers with N rows, but it is {_describe(leaf)}")
            # bfloat16 and its like are of kind V, which NumPy itself cannot test.
            bad = np.argwhere(~np.isfinite(array.astype(np.float32) if array.dtype.kind == "V" else array))
            if len(bad):
                where = ", ".join(map(str, bad[0]))
                raise TaskError(
                    f"batch: {part} is {array[tuple(bad[0])]} at [{where}] "
                    f"({len(bad):,} of {array.size:,} values are nan or inf)"
                )
            sizes.append(len(array))
    x, y = batch
    if len(set(sizes)) != 1 or not sizes[0]:
        raise TaskError(f"batch: x and y need the same number of examples, but x is {_describe(x)}, y {_describe(y)}")
    return x, y, sizes[0]


def check_loss(task: Task, outputs: Any, y: Any, n: int) -> np.ndarray:
    """Return the loss of each of n examples.

    Raises:
        TaskError: outputs or losses are not per example, or a loss depends on other examples.
    """
    for leaf in jax.tree.leaves(outputs):
        if not jnp.ndim(leaf) or len(leaf) != n:
            raise TaskError(f"the model must return outputs of {n} examples [{n}, ...], but they are {_describe(leaf)}")
    values = guard("loss", lambda: losses_of(task, outputs, y))
    shape = jnp.shape(values)
    if shape == ():
        raise TaskError(
            f"loss must be per example, shape [{n}], but it returned one number; leave out the mean over the batch, "
            "or, where it cannot be told apart by example, give Task(joint_loss=True)"
        )
    if shape != (n,):
        raise TaskError(
            f"loss must be per example, shape [{n}], but its shape is {list(shape)}; average over all other axes"
        )
    if task.joint_loss:
        return np.asarray(values, np.float64)
    # A loss of the right shape may still mix the examples, e.g. the batch's mean repeated: half a batch tells.
    half = (n + 1) // 2
    first_half = jax.tree.map(lambda leaf: leaf[:half], (outputs, y))
    alone = np.asarray(guard("loss", lambda: task.loss(*first_half)), np.float64)
    together = np.asarray(values, np.float64)[:half]
    if alone.shape != (half,) or not np.allclose(alone, together, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise TaskError(
            "loss of one example depends on the others in the batch; it must be computed for each alone, or be "
            "declared by Task(joint_loss=True)"
        )
    return np.asarray(values, np.float64)


def check_finite(values: np.ndarray) -> None:
    """Check the losses of the untrained model with ReLU.

    Raises:
        TaskError: one is not finite.
    """
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise TaskError(
            f"loss is {values[bad[0]]} for relu(x), at example {bad[0]} ({len(bad)} of {len(values)}); "
            "check the labels (classes count from 0) and the scale of x"
        )


def _check_training(task: Task, usual: str, run: bool, second: bool) -> tuple[str, dict[str, float]]:
    if task.train is None:
        return "none (train outside with study.trial(); search and confirm need train)", {}
    act = activation(usual)
    if not isinstance(task.train, Alone):
        _check_signature("train must accept (act, seed)", task.train, act, seed=0)
    if task.trains_together:
        _check_signature("train_many must accept (acts, seeds)", task.train_many, act, [0])
    if not run:
        return f"defined, not run; its objective is {task.objective} ({task.direction})", {}
    metrics, first = _timed_training(task, act)
    if not isinstance(metrics, Mapping):
        raise TaskError(f"train must return a dict of metrics, but it returned {type(metrics).__name__}")
    if task.objective not in metrics:
        raise TaskError(f"train must return the objective {task.objective!r}, but it returned {dict(metrics)}")
    values = {str(name): _number(name, value) for name, value in metrics.items()}
    if not math.isfinite(values[task.objective]):
        raise TaskError(f"train returned {task.objective}={values[task.objective]} for {usual}; ReLU should train")
    together = _check_together(task, act) if task.trains_together else ""
    another = _second(task, act, values, first) if second else ""
    return f"ran with {usual} in {first.seconds:.1f} s, compilation included{together}{another}", values


def _second(task: Task, act: Activation, values: Mapping[str, float], first: _Compiled) -> str:
    """Train a second function of ReLU's shape: does `train` use it, and does it compile anew?"""
    others = (other for other in task.baselines if other != act.name and parse(other).shape == act.shape)
    name = next(others, act.name.replace("relu", "tanh"))
    metrics, second = _timed_training(task, activation(name))
    text = f"; then {name}, of the same shape, in {second.seconds:.1f} s"
    if isinstance(metrics, Mapping) and all(_alike(metrics.get(key), value) for key, value in values.items()):
        text += (
            ", WITH THE SAME METRICS, to the last digit: train seems to ignore the activation; have it build the model "
            "with the `act` that it is given"
        )
    again = {function: took for function, took in second.programs.items() if function in first.programs}
    if sum(again.values()) > max(_SECONDS, _SHARE * sum(first.programs.values())):
        slowest = max(again, key=lambda function: again[function])
        text += (
            f", COMPILING ANEW {len(again)} programs, {slowest} the longest, for {sum(again.values()):.1f} s, as each "
            "function of a search will: take `act` as an argument of a function that is jitted at the top of the file, "
            "in place of closing over it or jitting inside train: one program then serves all functions of a shape"
        )
    return text


def _alike(a: Any, b: float) -> bool:
    try:
        return float(a) == b
    except (TypeError, ValueError):
        return False


@dataclass
class _Compiled:
    """How long a training took, and for how long it compiled which functions."""

    seconds: float = 0.0
    programs: dict[str, float] = field(default_factory=dict)


def _timed_training(task: Task, act: Any) -> tuple[Any, _Compiled]:
    seen = _Compiled()

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.startswith("/jax/core/compile/") and (name := kwargs.get("fun_name")):
            name = str(name).removeprefix("jit(").removesuffix(")")
            seen.programs[name] = seen.programs.get(name, 0.0) + duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    start = time.perf_counter()
    try:
        metrics = guard("train", lambda: task.train(act, seed=0))  # type: ignore[misc]
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    seen.seconds = time.perf_counter() - start
    return metrics, seen


def _check_signature(demand: str, function: Any, *args: Any, **named: Any) -> None:
    try:
        inspect.signature(function).bind(*args, **named)
    except ValueError:  # no signature to look at
        pass
    except TypeError as error:
        raise TaskError(f"{demand}: {error}") from error


def _check_together(task: Task, act: Activation) -> str:
    """Train two members together."""
    start = time.perf_counter()
    acts = stack([act] * 2)
    metrics = guard("train_many", lambda: task.train_many(acts, [0, 1]))  # type: ignore[misc]
    if not isinstance(metrics, Mapping) or task.objective not in metrics:
        raise TaskError(f"train_many must return the objective {task.objective!r}, but it returned {metrics!r}")
    for name, values in metrics.items():
        if np.shape(values) != (2,):
            raise TaskError(f"train_many must return one value per member, [2], but {name} is {_describe(values)}")
    return f"; two together in {time.perf_counter() - start:.1f} s"


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TaskError(f"train must return numbers, but {name} is {_describe(value)}") from None


def _count_parameters(model: Any, variables: Any) -> int:
    from flax import nnx

    weights = nnx.state(model, nnx.Param) if variables is None else variables.get("params", {})
    return sum(int(np.prod(jnp.shape(leaf))) for leaf in jax.tree.leaves(weights))


def _describe(value: Any) -> str:
    leaves = jax.tree.leaves(value)
    if not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves) or not leaves:
        return f"a {type(value).__name__}"
    return ", ".join(f"{list(leaf.shape)} {leaf.dtype}" for leaf in leaves)
