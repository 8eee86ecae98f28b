"""What is computed of one candidate: a task made ready, and the eigenvalues of its factors, to be compiled."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from aqx.activation import Activation, activation
from aqx.errors import InputError, TaskError
from aqx.fisher.factors import Factors
from aqx.fisher.outputs import per_example_losses
from aqx.fisher.probe import Probe, examples_of, probe_model, probe_without_layers
from aqx.fisher.spectrum import Factor, eigenvalues_of, eigenvalues_of_A, factor_of_A, factor_of_G
from aqx.numerics.settings import own_settings
from aqx.operators import operator_table
from aqx.spectra.devices import on_cpu
from aqx.spectra.layout import Layout, layout_of
from aqx.spectra.memory import peak_bytes
from aqx.spectra.traced_features import traced_features
from aqx.tasks import Task, build_model, guard
from aqx.tasks.check import check_batch
from aqx.tasks.inputs import is_wrong_call, not_applicable, stand_in
from aqx.tasks.model import losses_of, new_model

_serial = itertools.count(1)


class Opaque:
    """A traced activation in a wrapping that Flax takes for a plain function.

    NNX refuses attributes with arrays inside, and nn.jit takes dataclasses apart to compare them.
    """

    def __init__(self, act: Activation):
        self._act, self._serial = act, next(_serial)

    def __call__(self, *inputs: Any) -> Any:
        return self._act(*inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._act, name)

    def __hash__(self) -> int:
        # Flax compares modules by hash alone; an address would come back after the garbage collector has been.
        return hash(("aqx.fisher.Opaque", self._serial))


class _Marked(Opaque):
    """An activation on whose values a mark is left: what depends on the mark depends on the activation."""

    def __init__(self, act: Activation, mark: Array):
        super().__init__(act)
        self._mark = mark

    def __call__(self, *inputs: Any) -> Any:
        y = super().__call__(*inputs)
        return y * self._mark.astype(y.dtype)


@dataclass(frozen=True)
class Subject:
    """A task made ready: its batch, its initial parameters, its layers (none where no spectra are wanted).

    Attributes:
        task: the task.
        probe: what to compute.
        state: what is left of the model without its structure; shared by all candidates.
        x, y: the batch.
        bytes_each: what the values of one candidate may take at the same time.
        digest: of the batch, the loss and the initial weights, once they are accepted.
        inputs: how many inputs the candidates have; a model may look otherwise with gated units.
        layout: which layers stand for which of the model with the other units, that has given features their form;
            None where this one has.
        kept: what an engine has compiled or computed once for it, for the engines that come later.
    """

    task: Task
    probe: Probe
    state: Any
    x: Any
    y: Any
    bytes_each: int = 0
    digest: dict[str, Any] | None = None
    inputs: int = 1
    layout: Layout | None = None
    kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def model(self, act: Any, state: Any) -> tuple[Any, Any]:
        """The task's model with an activation that may be traced, and variables for it."""
        flavour = self.probe.flavour
        return flavour.merge(flavour.structure(lambda: new_model(self.task, act)), state)

    def factors(self, act: Any, state: Any, x: Any, y: Any) -> tuple[Float[Array, " N"], dict[str, Factors]]:
        """Losses and factors (sums) of one candidate."""
        key = jax.random.fold_in(jax.random.key(self.task.seed), 1)
        return self.probe.factors(*self.model(act, state), x, y, key)

    def losses(self, act: Any, state: Any, x: Any, y: Any) -> Float[Array, " N"]:
        """The loss of each example of a batch, which may be another than the task's."""
        # By the flavour, as a model that writes to its variables needs some of its own at every call.
        outputs = self.probe.flavour.run(*self.model(act, state), {}, x, self.probe.apply, self.probe.settings)
        return per_example_losses(self.probe.loss, outputs, y, examples_of(x))


@own_settings()
def prepare(task: Task, fisher: str = "empirical", sharing: str = "expand") -> Subject:
    """Draw the task's batch, initialise its model once with its seed, and find the layers.

    The model is made for functions of one input, or, where it takes none, for those of two.

    Raises:
        TaskError: the batch or the model cannot be used; one line says why.
    """
    return _for_either(task, partial(_prepare, task, fisher, sharing))


def _for_either(task: Task, prepared: Callable[[int, Any, Any], Subject]) -> Subject:
    """What is prepared for functions of one input, or where the model takes none for those of two."""
    with on_cpu():  # many small programs
        x, y = _batch(task)
        try:
            return prepared(1, x, y)
        except TaskError as error:
            if not is_wrong_call(error):
                raise
        return prepared(2, x, y)


@own_settings()
def in_other_kind(subject: Subject) -> Subject | str:
    """Make the same task ready for functions of two inputs instead of one, or the reverse; or say why it takes none.

    It is made ready once.
    """
    if "other kind" not in subject.kept:
        subject.kept["other kind"] = _in_other_kind(subject)
    return subject.kept["other kind"]


def _in_other_kind(subject: Subject) -> Subject | str:
    inputs = 3 - subject.inputs
    with on_cpu():
        if reason := not_applicable(subject.task, inputs, subject.x):
            return reason
        if not subject.probe.layers:
            return replace(_without_layers(subject.task, inputs, subject.x, subject.y), digest=subject.digest)
        probe = subject.probe
        other = _prepare(subject.task, probe.fisher, probe.settings.sharing, inputs, subject.x, subject.y)
    layout = layout_of(probe.layers, other.probe.layers, probe.coverage.weights)
    return replace(other, digest=subject.digest, layout=layout)


def _prepare(task: Task, fisher: str, sharing: str, inputs: int, x: Any, y: Any) -> Subject:
    model, variables = _initialised(task, inputs, x)
    act = stand_in(inputs)

    def traced() -> tuple[Subject, Any]:
        try:
            probe = probe_model(
                model, variables, x, y, loss=loss_of(task), fisher=fisher, sharing=sharing, apply=task.apply
            )
            if not probe.layers:
                raise TaskError(f"the model of task {task.name!r} has no layer that aqx covers: {probe.coverage}")
            subject = Subject(task, probe, probe.flavour.split(model, variables)[1], x, y, inputs=inputs)
            return subject, jax.make_jaxpr(partial(subject.factors, act))(subject.state, x, y)
        except InputError as error:
            raise TaskError(f"task {task.name!r}: {error}") from error

    subject, program = guard(f"task {task.name!r}: the model, or its derivative,", traced)
    # Beside the factors, their matrices on the way to eigenvalues, and the products that features are quantiles of.
    matrices = sum(aval.size * aval.dtype.itemsize for aval in program.out_avals)
    products = 4 * sum(subject.probe.coverage.weights.values())
    return replace(subject, bytes_each=max(peak_bytes(program.jaxpr), 3 * matrices + 3 * products))


def loss_of(task: Task) -> Callable[[Any, Any], Any]:
    """The task's loss, per example; a joint one gives each example the gradient of the whole batch's loss."""
    return partial(losses_of, task) if task.joint_loss else task.loss


@own_settings()
def prepare_without_layers(task: Task) -> Subject:
    """Draw the task's batch and initialise its model as `prepare` does, whatever layers the model has.

    Raises:
        TaskError: the batch or the model cannot be used; one line says why.
    """
    return _for_either(task, partial(_without_layers, task))


def _without_layers(task: Task, inputs: int, x: Any, y: Any) -> Subject:
    model, variables = _initialised(task, inputs, x)

    def found() -> Subject:
        try:
            probe = probe_without_layers(model, x, loss=loss_of(task), apply=task.apply)
        except InputError as error:
            raise TaskError(f"task {task.name!r}: {error}") from error
        return Subject(task, probe, probe.flavour.split(model, variables)[1], x, y, inputs=inputs)

    return guard(f"task {task.name!r}: the model", found)


def _batch(task: Task) -> tuple[Any, Any]:
    x, y, _ = check_batch(task)
    return jax.tree.map(jnp.asarray, (x, y))


def _initialised(task: Task, inputs: int, x: Any) -> tuple[Any, Any]:
    """The model with its initial variables."""
    return guard("build_model", lambda: build_model(task, stand_in(inputs), x))


def traces(subject: Subject, operator: str, computed: Callable[..., Any]) -> bool:
    """Whether what is computed of a candidate can be traced with an operator, whatever its function raises."""
    try:
        binary = operator_table().by_name[operator].kind == "binary"
        name = f"{operator}(x,x)" if binary else f"{operator}(x)"
        act = activation(name if subject.inputs == 1 else f"mul({name},y)")
        jax.eval_shape(partial(computed, Opaque(act)), subject.state, subject.x, subject.y)
    except Exception:
        return False
    return True


def checks(probe: Probe) -> list[str]:
    """What of a candidate is looked at for values that are not finite, in the order of the computation."""
    parts = ("input of", "gradient at", "spectrum of")
    return ["loss", *(f"{part} {layer.path}" for part in parts for layer in probe.layers)]


def spectra_of(
    subject: Subject, with_features: bool, act: Activation, fixed: dict[str, Array], state: Any, x: Any, y: Any
) -> tuple[Float[Array, " E"], Bool[Array, " F"], *tuple[Float[Array, " D"], ...]]:
    """Eigenvalues of the factors of one candidate, A before G, layer after layer; whether each of `checks` is finite.

    Few arrays, as each array that a program returns costs about 10 µs.

    Args:
        subject: the task made ready.
        with_features: whether to return features too, as a third array.
        act: the candidate, traced.
        fixed: eigenvalues of those A factors that do not depend on the activation.
        state: as in `Subject`.
        x: as in `Subject`.
        y: as in `Subject`.
    """
    probe = subject.probe
    losses, factors = subject.factors(Opaque(act), state, x, y)
    of_A, of_G = _eigenvalues(probe, factors, fixed)
    values, finite = [], {"loss": losses}
    for layer in probe.layers:
        sums, path = factors[layer.path], layer.path
        both = jnp.concatenate([of_A[path].reshape(-1), of_G[path].reshape(-1)])
        finite |= {
            f"input of {path}": of_A[path] if path in fixed else sums.A,
            f"gradient at {path}": sums.G,
            f"spectrum of {path}": both,
        }
        values.append(both)
    found = jnp.concatenate(values), jnp.stack([jnp.isfinite(finite[what]).all() for what in checks(probe)])
    if not with_features:
        return found
    pairs = {
        key: (of_A[layer.path][i], of_G[layer.path][i]) for layer in probe.layers for i, key in enumerate(layer.keys)
    }
    return *found, traced_features(pairs, probe.coverage.weights)


def _eigenvalues(
    probe: Probe, factors: Mapping[str, Factors], fixed: Mapping[str, Array]
) -> tuple[dict[str, Float[Array, "S B d"]], dict[str, Float[Array, "S B p"]]]:
    """Eigenvalues of all A and of all G, by path."""
    of_A, pending = dict(fixed), dict[str, Factor]()
    for layer in probe.layers:
        tap, sums = layer.tap, factors[layer.path]
        if layer.path not in fixed and tap.rows.one_hot:
            of_A[layer.path] = eigenvalues_of_A(tap, sums, probe.examples)
        elif layer.path not in fixed:
            pending[layer.path] = factor_of_A(tap, sums, probe.examples)
    all_G = [factor_of_G(layer.tap, factors[layer.path]) for layer in probe.layers]
    solved = eigenvalues_of([*pending.values(), *all_G])
    of_A |= zip(pending, solved, strict=False)
    return of_A, dict(zip((layer.path for layer in probe.layers), solved[len(pending) :], strict=True))


def fixed_inputs(subject: Subject) -> dict[str, Float[Array, "S B d"]]:
    """Eigenvalues of the A factors that do not depend on the activation, as of a first layer: computed once."""
    act = stand_in(subject.inputs)

    def inputs(mark: Array, state: Any, x: Any, y: Any) -> dict[str, Array]:
        return {path: part.A for path, part in subject.factors(_Marked(act, mark), state, x, y)[1].items()}

    closed = jax.make_jaxpr(inputs)(jnp.ones(()), subject.state, subject.x, subject.y)
    reached = {closed.jaxpr.invars[0]}
    for equation in closed.jaxpr.eqns:
        parts = equation.invars
        if equation.primitive.name == "select_n" and all(part is parts[1] for part in parts[2:]):
            parts = parts[1:]  # the same in any case (see `looking_at`)
        # Literals have no identity and depend on nothing.
        if any(not hasattr(v, "val") and v in reached for v in parts):
            reached.update(equation.outvars)
    paths = sorted(layer.path for layer in subject.probe.layers)
    free = {
        path for path, out in zip(paths, closed.jaxpr.outvars, strict=True) if hasattr(out, "val") or out not in reached
    }

    @jax.jit
    def compute(state: Any, x: Any, y: Any) -> dict[str, Array]:
        _, factors = subject.factors(Opaque(act), state, x, y)
        return {
            layer.path: eigenvalues_of_A(layer.tap, factors[layer.path], subject.probe.examples)
            for layer in subject.probe.layers
            if layer.path in free
        }

    with on_cpu():
        return compute(subject.state, subject.x, subject.y)
