"""One compiled program per shape of function: eigenvalues of the factors of any candidate of that shape."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from aqx.activation import Activation, activation
from aqx.errors import InputError, TaskError
from aqx.fisher.eigenvalues import Probe, probe_model
from aqx.fisher.factors import Factors
from aqx.fisher.spectrum import eigvalsh, normalised
from aqx.tasks import Task, build_model, guard

# Any finite function will do: it only has to let the model be initialised and traced.
_STAND_IN = "tanh(x)"
_serial = itertools.count(1)


class Opaque:
    """A traced activation in a wrapping that Flax takes for a plain function.

    NNX refuses attributes with arrays inside, and nn.jit takes dataclasses apart to compare them.
    """

    def __init__(self, act: Activation):
        self._act, self._serial = act, next(_serial)

    def __call__(self, x: Any) -> Any:
        return self._act(x)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._act, name)

    def __hash__(self) -> int:
        # Flax compares modules by hash alone; an address would come back after the garbage collector has been.
        return hash(("aqx.fisher.Opaque", self._serial))


@dataclass(frozen=True)
class Subject:
    """A task made ready: its batch, its initial parameters, its layers.

    Attributes:
        task: the task.
        probe: what to compute.
        state: variables of the Linen model, or the state of the NNX one; shared by all candidates.
        x, y: the batch.
    """

    task: Task
    probe: Probe
    state: Any
    x: Any
    y: Any

    def model(self, act: Any, state: Any) -> tuple[Any, Any]:
        """The task's model with an activation that may be traced, and variables for it."""
        if not isinstance(self.state, nnx.State):
            return self.task.build_model(act), state
        # Only the structure is wanted: under eval_shape the new model's own initialisation costs nothing.
        model = nnx.eval_shape(lambda: build_model(self.task, act, self.x)[0])
        return nnx.merge(nnx.graphdef(model), state), None

    def factors(self, act: Any, state: Any, x: Any, y: Any) -> tuple[Float[Array, " N"], dict[str, Factors]]:
        """Losses and factors (sums) of one candidate."""
        key = jax.random.fold_in(jax.random.key(self.task.seed), 1)
        return self.probe.factors(*self.model(act, state), x, y, key)


def prepare(task: Task, fisher: str = "empirical", sharing: str = "expand") -> Subject:
    """Draw the task's batch, initialise its model once with its seed, and find the layers.

    Raises:
        TaskError: the batch or the model cannot be used; one line says why.
    """
    batch = guard("batch", task.batch)
    if not isinstance(batch, tuple) or len(batch) != 2:
        raise TaskError(f"batch of task {task.name!r} must return (x, y), but it returned {type(batch).__name__}")
    x, y = jax.tree.map(jnp.asarray, batch)
    for name, part in (("x", x), ("y", y)):
        for leaf in jax.tree.leaves(part):
            if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(leaf).all()):
                raise TaskError(f"batch of task {task.name!r}: {name} has values that are nan or infinite; clean them")
    act = activation(_STAND_IN)
    model, variables = guard("build_model", lambda: build_model(task, act, x))
    try:
        probe = probe_model(model, variables, x, y, loss=task.loss, fisher=fisher, sharing=sharing, apply=task.apply)
        if not probe.layers:
            raise TaskError(f"the model of task {task.name!r} has no layer that aqx covers: {probe.coverage}")
        subject = Subject(task, probe, nnx.state(model) if variables is None else variables, x, y)
        jax.eval_shape(lambda state: subject.factors(act, state, x, y), subject.state)
    except InputError as error:
        raise TaskError(f"task {task.name!r}: {error}") from error
    return subject


@dataclass(frozen=True)
class Spectra:
    """Eigenvalues of the factors of K candidates, and whether each candidate's numbers are finite.

    Attributes:
        pairs: by layer key, eigenvalues of A [K, B, d] and of G [K, B, p].
        finite: by what was looked at ("loss", "gradient at Dense_0", …), in the order of the computation [K].
    """

    pairs: dict[str, tuple[np.ndarray, np.ndarray]]
    finite: dict[str, np.ndarray]

    def reason(self, candidate: int) -> str | None:
        """Why a candidate is invalid, or None."""
        for what, ok in self.finite.items():
            if not ok[candidate]:
                return f"the {what} is not finite"
        return None


class Program:
    """Spectra of candidates of one shape, whose opcodes are its argument; compiled once, at its first call.

    Candidates go through it one by one, and the device queues them. A loop inside of the program was no faster on a
    small MLP and 1.5 times slower on a CNN (XLA runs the body of a loop with less parallelism); vmap evaluates every
    operator of the table.
    """

    def __init__(self, subject: Subject):
        self.subject = subject
        self._run = jax.jit(self._one)
        self.fixed: dict[str, Array] | None = None

    def __call__(self, activations: Sequence[Activation]) -> Callable[[], Spectra]:
        """Start computing; calling what is returned waits for the result."""
        subject = self.subject
        if self.fixed is None:
            self.fixed = fixed_inputs(subject, activations[0])
        outs = [self._run(act, self.fixed, subject.state, subject.x, subject.y) for act in activations]
        return lambda: self._collect(jax.device_get(outs))

    def _one(self, act: Activation, fixed: dict[str, Array], state: Any, x: Any, y: Any) -> Any:
        probe = self.subject.probe
        losses, factors = self.subject.factors(Opaque(act), state, x, y)
        pairs, finite = {}, {"loss": _all_finite(losses)}
        for layer in probe.layers:
            mean = normalised(factors[layer.path], probe.examples)
            finite[f"input of {layer.path}"] = _all_finite(mean.A)
            finite[f"gradient at {layer.path}"] = _all_finite(mean.G)
            of_A = fixed[layer.path] if layer.path in fixed else _of_A(layer, mean.A)
            of_G = eigvalsh(_or_zero(mean.G))
            finite[f"spectrum of {layer.path}"] = _all_finite(of_A) & _all_finite(of_G)
            pairs[layer.path] = (of_A, of_G)
        return pairs, finite

    def _collect(self, outs: Sequence[Any]) -> Spectra:
        stacked, flags = jax.tree.map(lambda *parts: np.stack(parts), *outs)
        pairs = {}
        for layer in self.subject.probe.layers:
            of_A, of_G = stacked[layer.path]
            pairs |= {key: (of_A[:, i], of_G[:, i]) for i, key in enumerate(layer.keys)}
        # A jitted function sorts the keys of its result; the first thing that went wrong is the reason.
        parts = ("input of", "gradient at", "spectrum of")
        order = ["loss", *(f"{part} {layer.path}" for part in parts for layer in self.subject.probe.layers)]
        return Spectra(pairs, {what: flags[what] for what in order})


def fixed_inputs(subject: Subject, act: Activation) -> dict[str, Array]:
    """Eigenvalues of the A factors that do not depend on the activation, as of a first layer: computed once."""

    def inputs(act: Activation, state: Any, x: Any, y: Any) -> dict[str, Array]:
        _, factors = subject.factors(Opaque(act), state, x, y)
        return {path: part.A for path, part in factors.items()}

    traced = jax.tree.map(jnp.asarray, act)
    closed = jax.make_jaxpr(inputs)(traced, subject.state, subject.x, subject.y)
    reached = set(closed.jaxpr.invars[: len(jax.tree.leaves(act))])
    for equation in closed.jaxpr.eqns:
        # Literals have no identity and depend on nothing.
        if any(not hasattr(v, "val") and v in reached for v in equation.invars):
            reached.update(equation.outvars)
    paths = sorted(layer.path for layer in subject.probe.layers)
    free = {
        path for path, out in zip(paths, closed.jaxpr.outvars, strict=True) if hasattr(out, "val") or out not in reached
    }

    @jax.jit
    def compute(state: Any, x: Any, y: Any) -> dict[str, Array]:
        A = inputs(activation(_STAND_IN), state, x, y)
        return {
            layer.path: _of_A(layer, A[layer.path] / subject.probe.examples)
            for layer in subject.probe.layers
            if layer.path in free
        }

    return compute(subject.state, subject.x, subject.y)


def _of_A(layer: Any, A: Array) -> Array:
    return jnp.sort(A[..., 0], axis=-1) if layer.tap.rows.one_hot else eigvalsh(_or_zero(A))


def _or_zero(matrices: Array) -> Array:
    # LAPACK may not return from a matrix with nan in it.
    return jnp.where(jnp.isfinite(matrices).all(), matrices, 0)


def _all_finite(values: Array) -> Bool[Array, ""]:
    return jnp.isfinite(values).all()
