"""Short runs as a descriptor: how the loss falls in a few steps of Adam, on examples that no step has seen.

What a training would come to shows early. Who fits a small batch fastest is not who generalises best, so one half of
the task's own batch is trained on, and the losses are those of the other (see the guide `early`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Float32, Int

from aqx.activation import Activation
from aqx.errors import TaskError
from aqx.spectra.descriptor import Descriptor
from aqx.spectra.memory import peak_bytes
from aqx.spectra.subject import Opaque, Subject
from aqx.store.kinds import RUNS
from aqx.tasks.inputs import stand_in

# Measured: see the guide `early`. Minibatches of an eighth of the batch, each pass over their half in a fresh order, at
# rates that fall to 0 along half a cosine. The loss of the other half is taken every eight steps, and kept after these.
RATES = (1e-3, 3e-3, 1e-2)
STEPS, PARTS, FEWEST, EVERY = 64, 8, 8, 8
KEPT = (8, 16, 32, 64)
# Stands for a loss that is not finite: a run that diverges at one rate is no reason to leave a function out.
DIVERGED = 1e30


@dataclass(frozen=True)
class ShortRuns:
    """Losses of the short runs of K candidates.

    Attributes:
        losses: by rate, those of the held-out half after the steps of `KEPT`, then the lowest of the run
            [K, rates, losses].
        failed: candidates whose computation raised an exception, and which.
    """

    losses: Float[np.ndarray, "K R L"]
    failed: Mapping[int, str]

    @property
    def _finite(self) -> Bool[np.ndarray, "K R L"]:
        return np.isfinite(self.losses) & (np.abs(self.losses) < DIVERGED)

    def reasons(self) -> list[str | None]:
        """Why each candidate is invalid, or None: its loss is not finite at the end, whatever the rate."""
        finite = self._finite
        reasons: list[str | None] = [None] * len(finite)
        for i in np.flatnonzero(~finite[:, :, len(KEPT) - 1].any(axis=1)).tolist():
            later = f"the loss after {STEPS} steps is not finite, whatever the rate"
            reasons[i] = self.failed.get(i, later if finite[i, :, 0].any() else "the loss is not finite")
        return reasons

    def features_of(self, subject: Subject) -> Float32[np.ndarray, "K D"]:
        """The losses [K, D], `DIVERGED` where they are not finite; rows of nan for invalid candidates."""
        losses = np.where(self._finite, self.losses, DIVERGED)
        valid = np.array([reason is None for reason in self.reasons()], bool)
        return np.where(valid[:, None], losses.reshape(len(losses), -1), np.nan).astype(np.float32)


def runs_of(subject: Subject, act: Activation, fixed: Any, state: Any, x: Any, y: Any) -> tuple[Float[Array, "R L"]]:
    """The losses of the short runs of one candidate; see `ShortRuns`.

    Args:
        subject: the task made ready.
        act: the candidate, traced.
        fixed: nothing.
        state: as in `Subject`.
        x: as in `Subject`.
        y: as in `Subject`.
    """
    opaque, start, loss = Opaque(act), *_trained(subject, state)
    adam, (rows, held_out) = optax.scale_by_adam(), _rows(subject)
    share = 0.5 * (1 + np.cos(np.pi * np.arange(STEPS) / STEPS))
    steps = jnp.asarray(rows.reshape(-1, EVERY, rows.shape[1])), jnp.asarray(share.reshape(-1, EVERY), jnp.float32)
    unseen = jax.tree.map(lambda leaf: leaf[held_out], (x, y))

    def step(rate: Array, carry: Any, now: tuple[Array, Array]) -> tuple[Any, None]:
        (weights, moments), (own, here) = carry, now
        x_own, y_own = jax.tree.map(lambda leaf: leaf[own], (x, y))
        gradient = jax.grad(partial(loss, opaque))(weights, x_own, y_own)
        direction, moments = adam.update(gradient, moments)
        weights = jax.tree.map(lambda w, d: (w - rate * here * d).astype(w.dtype), weights, direction)
        return (weights, moments), None

    def steps_and_loss(rate: Array, carry: Any, now: tuple[Array, Array]) -> tuple[Any, Array]:
        (weights, moments), _ = jax.lax.scan(partial(step, rate), carry, now)
        return (weights, moments), loss(opaque, weights, *unseen)

    def run(rate: Array) -> Array:
        _, losses = jax.lax.scan(partial(steps_and_loss, rate), (start, adam.init(start)), steps)
        kept = losses[np.array(KEPT) // EVERY - 1]
        return jnp.append(kept, jnp.where(jnp.isnan(losses), jnp.inf, losses).min()).astype(jnp.float32)

    # Not by vmap: on a CPU a convolution by several kernels at once takes many times as long as one after the other.
    return (jax.lax.map(run, jnp.array(RATES, jnp.float32)),)


def _rows(subject: Subject) -> tuple[Int[np.ndarray, "S M"], Int[np.ndarray, " H"]]:
    """The rows of each step's minibatch, and those held out; all rows where the model takes no other number of them."""
    examples, random = subject.probe.examples, np.random.default_rng(0)
    shuffled = random.permutation(examples)
    trained, held_out = shuffled[: examples // 2], shuffled[examples // 2 :]
    size = min(len(trained), max(FEWEST, examples // PARTS))
    if not (size and _takes(subject, size) and _takes(subject, len(held_out))):
        return np.tile(np.arange(examples), (STEPS, 1)), np.arange(examples)
    each = len(trained) // size
    passes = [random.permutation(trained)[: each * size].reshape(each, size) for _ in range(-(-STEPS // each))]
    return np.concatenate(passes)[:STEPS], held_out


def _takes(subject: Subject, examples: int) -> bool:
    """Whether the model, and the loss, take so many examples."""
    part = jax.tree.map(lambda leaf: leaf[:examples], (subject.x, subject.y))
    try:
        jax.eval_shape(partial(subject.losses, stand_in(subject.inputs)), subject.state, *part)
    except Exception:  # whatever they raise
        return False
    return True


def _trained(subject: Subject, state: Any) -> tuple[list[Any], Callable[..., Array]]:
    """The weights in a state that a training would change, and the mean loss as a function of (act, weights, x, y)."""
    flavour = subject.probe.flavour
    leaves, tree = jax.tree.flatten(flavour.parameters(state))
    trained = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def loss(act: Any, weights: list[Any], x: Any, y: Any) -> Array:
        whole = list(leaves)
        for i, weight in zip(trained, weights, strict=True):
            whole[i] = weight
        return subject.losses(act, flavour.replaced(state, jax.tree.unflatten(tree, whole)), x, y).mean()

    return [leaves[i] for i in trained], loss


def _program(subject: Subject, on_cpu: bool) -> Callable[..., tuple[Any, ...]]:
    if not _trained(subject, subject.state)[0]:
        raise TaskError(f"the model of task {subject.task.name!r} has no weights to train")
    return partial(runs_of, subject)


def _nothing(subject: Subject) -> dict[str, Any]:
    return {}


def _bytes_each(subject: Subject) -> int:
    program = partial(runs_of, subject, stand_in(subject.inputs), {})
    return peak_bytes(jax.make_jaxpr(program)(subject.state, subject.x, subject.y).jaxpr)


def _gather(subject: Subject, arrays: Sequence[np.ndarray], failed: Mapping[int, str]) -> ShortRuns:
    losses = np.array(arrays[0], np.float64)
    losses[list(failed)] = np.nan
    return ShortRuns(losses, failed)


def _empty(subject: Subject, count: int) -> list[np.ndarray]:
    return [np.full((count, len(RATES), len(KEPT) + 1), np.nan)]


def _form(subject: Subject) -> dict[str, Any]:
    recipe = {"optimizer": "adam", "rates": list(RATES), "steps": STEPS, "parts": PARTS, "kept": list(KEPT)}
    return {"runs": recipe | {"held_out": 0.5, "every": EVERY}, "examples": subject.probe.examples}


def _traced(subject: Subject) -> Callable[..., Any]:
    def gradient(act: Any, state: Any, x: Any, y: Any) -> Any:
        weights, loss = _trained(subject, state)
        return jax.grad(partial(loss, act))(weights, x, y)

    return gradient


SHORT_RUNS: Descriptor[ShortRuns] = Descriptor(
    RUNS, "short run", _program, _nothing, _bytes_each, _gather, _empty, _form, _traced
)
