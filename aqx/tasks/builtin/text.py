"""Task `text`: a byte-level GPT, on a text of the user's or on the source of Python's own library."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int32

from aqx.activation import Activation
from aqx.errors import InputError
from aqx.linen import learnt, with_constants
from aqx.losses import softmax_cross_entropy
from aqx.population import TrainMany, population
from aqx.tasks.builtin.corpus import Corpus, library_version, read_corpus
from aqx.tasks.builtin.models.gpt import GPT
from aqx.tasks.inputs import stand_in
from aqx.tasks.task import NamedReference, Task, refer_to

FISHER_BATCH = 32
HELD_OUT = 256  # windows of validation and of test text that are measured, at most
WARM_UP = 0.1  # of all steps
BASELINES = (
    *("relu(x)", "gelu(x)", "swish(x)", "relu_squared(x)", "square(max(x,mul(0.5,x)))", "mish(x)"),
    *("mul(sigmoid(x),y)", "mul(relu(x),y)", "mul(gelu(x),y)", "mul(swish(x),y)", "mul(x,y)"),
)


@dataclass(frozen=True)
class Settings:
    """The model and its training.

    Attributes:
        context: bytes that a prediction sees.
        width: numbers per position.
        depth: blocks.
        heads: attention heads, a divisor of the width.
        steps: of Adam, its rate rising for a tenth of them, then falling to 0 along a cosine.
        batch: windows of text per step.
        rate: the highest learning rate.
    """

    context: int = 64
    width: int = 64
    depth: int = 2
    heads: int = 4
    steps: int = 400
    batch: int = 16
    rate: float = 3e-3

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            wanted = float if each.name == "rate" else int
            if isinstance(value, bool) or not isinstance(value, wanted | int) or not 0 < value < 1e9:
                raise InputError(f"{each.name}={value!r} is not usable; give a positive {wanted.__name__}")
        if self.width % self.heads:
            raise InputError(f"heads={self.heads} does not divide width={self.width}; give a divisor")


def text_task(path: str | os.PathLike[str] | None, *, name: str | None = None, **settings: Any) -> Task:
    """Return a task that trains a small GPT to predict the next byte of a text.

    The feed-forward layers are as wide as the activation asks: a unit of two inputs gets two thirds as many as one of a
    single input, so that all functions have the same number of weights.

    Args:
        path: a UTF-8 file, or a folder of some; None for the source of Python's own library.
        name: what the database calls the task; default the text's. Tasks that differ in text or settings need different
            names in one database.
        settings: those of `Settings`: context, width, depth, heads, steps, batch, rate.

    Returns:
        The task: its metrics are `val_bpb` and `test_bpb`, bits per byte, and `train_bpb`, that of the last tenth of
        the training; the text is read when first needed.

    Raises:
        InputError: a setting is unknown or out of range.

    Example:
        >>> from aqx.tasks.builtin.text import text_task
        >>> task = text_task("notes.txt", width=128, heads=4)
        >>> task.name, task.objective, task.direction
        ('text-notes', 'val_bpb', 'minimize')
    """
    unknown = sorted(settings.keys() - {each.name for each in fields(Settings)})
    if unknown:
        known = ", ".join(each.name for each in fields(Settings))
        raise InputError(f"{unknown[0]} is no setting of a text task; give some of {known}")
    chosen = Settings(**settings)
    file = None if path is None else os.path.abspath(os.path.expanduser(path))
    default = f"text-python{library_version()}" if file is None else f"text-{Path(file).stem}"
    build = _Build(chosen)
    return Task(
        name=name or default,
        build_model=build,
        batch=partial(_batch, file, chosen),
        loss=softmax_cross_entropy,
        train_many=_Training(file, chosen),
        objective="val_bpb",
        direction="minimize",
        baselines=BASELINES,
    )


def built_in(name: str) -> Task:
    """Return the task `text`: on AQX_TEXT where that is set, else on the source of Python's own library.

    Raises:
        TaskError: the text cannot be read.
    """
    task = _of_name(name)
    task.batch()
    return task


def _of_name(name: str) -> Task:
    """The built-in task, in this process or in a worker, which reads the text when it needs it."""
    path = os.environ.get("AQX_TEXT") or None
    if path not in _built_in:
        _built_in[path] = refer_to(text_task(path), NamedReference(_of_name, name))
    return _built_in[path]


_built_in: dict[str | None, Task] = {}


@dataclass(frozen=True)
class _Build:
    """`build_model` by value: equal ones share their compiled programs."""

    settings: Settings

    def __call__(self, act: Any) -> GPT:
        s = self.settings
        return GPT(act, s.context, s.width, s.depth, s.heads)


def _corpus(path: str | None, settings: Settings) -> Corpus:
    return read_corpus(path, settings.context + 2)


def _windows(text: np.ndarray, settings: Settings, most: int) -> Int32[np.ndarray, "N T"]:
    """Windows of a text, each with the byte that follows, evenly spread and without overlap."""
    length = settings.context + 1
    starts = np.arange(0, len(text) - length + 1, length)
    starts = starts[np.linspace(0, len(starts) - 1, min(most, len(starts))).astype(int)]
    return text[starts[:, None] + np.arange(length)].astype(np.int32)


def _batch(path: str | None, settings: Settings) -> tuple[Int32[np.ndarray, "N T"], Int32[np.ndarray, "N T"]]:
    windows = _windows(_corpus(path, settings).train, settings, FISHER_BATCH)
    return windows[:, :-1], windows[:, 1:]


class _Training:
    """`train_many` of a text and settings; its programs are made when something is trained first."""

    def __init__(self, path: str | None, settings: Settings):
        self.path, self.settings = path, settings
        self._trained: dict[int, TrainMany] = {}  # by the inputs of a function, as initial weights are

    def __call__(self, acts: Activation, seeds: Any) -> dict[str, np.ndarray]:
        inputs = getattr(acts, "inputs", 1)
        if inputs not in self._trained:
            corpus = _corpus(self.path, self.settings)
            self._trained[inputs] = _training(_Build(self.settings), corpus, self.settings, inputs)
        found = self._trained[inputs](acts, seeds)
        finite = np.isfinite(sum(found.values()))
        return {name: np.where(finite, value, np.nan) for name, value in found.items()}


def _training(build: Callable[..., GPT], corpus: Corpus, settings: Settings, inputs: int) -> TrainMany:
    held = {"val": _windows(corpus.val, settings, HELD_OUT), "test": _windows(corpus.test, settings, HELD_OUT)}
    rate = optax.warmup_cosine_decay_schedule(
        0.0, settings.rate, max(1, int(WARM_UP * settings.steps)), max(2, settings.steps)
    )
    optimizer = optax.adam(rate, b2=0.99)
    length = settings.context + 1

    def prepare(seed: int) -> Any:
        starts = np.random.default_rng(seed).integers(
            0, len(corpus.train) - length + 1, (settings.steps, settings.batch), np.int32
        )
        return _init(np.uint32(seed % 2**32), build=build, inputs=inputs), starts

    def losses(act: Activation, params: Any, windows: Any) -> jax.Array:
        outputs: Any = build(act).apply(params, windows[:, :-1])
        return softmax_cross_entropy(outputs, windows[:, 1:])

    def train(act: Activation, prepared: Any) -> dict[str, jax.Array]:
        params, starts = prepared
        params = with_constants(params, build(act), act, jnp.zeros((1, 2), jnp.int32))
        text = jnp.asarray(corpus.train)

        def step(state: Any, rows: Any) -> tuple[Any, jax.Array]:
            params, optimizer_state = state
            windows = text[rows[:, None] + np.arange(length)].astype(jnp.int32)
            value, gradient = jax.value_and_grad(lambda params: losses(act, params, windows).mean())(params)
            updates, optimizer_state = optimizer.update(gradient, optimizer_state)
            return (optax.apply_updates(params, updates), optimizer_state), value

        (params, _), met = jax.lax.scan(step, (params, optimizer.init(params)), starts)
        found = {"train_bpb": met[-max(1, settings.steps // 10) :].mean()}
        for part, windows in held.items():
            whole = np.resize(windows, (-(-len(windows) // settings.batch), settings.batch, length))
            values = jax.lax.map(partial(losses, act, params), jnp.asarray(whole)).reshape(-1)
            found[f"{part}_bpb"] = values[: len(windows)].mean()
        return {name: value / math.log(2) for name, value in found.items()} | learnt(params)

    return population(train, prepare=prepare)


# Initial weights depend on the activation in the widths alone.
@partial(jax.jit, static_argnames=("build", "inputs"))
def _init(seed: jax.Array, *, build: Callable[..., GPT], inputs: int) -> Any:
    return build(stand_in(inputs)).init(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))
