"""What is known of a model's layers before any factor is computed: which are covered, and why the others are not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from aqx.errors import UnsupportedError
from aqx.fisher.factors import Factors, Tap, TapSettings
from aqx.fisher.kinds import Use
from aqx.fisher.rows import Rows

# apply(model, variables, x) -> outputs
Apply = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class Layer:
    """One covered leaf of the module tree, as stored: `stack` slices of it lie along `axes` of its parameters.

    Attributes:
        path: module path joined with "/".
        tap: rows, sharing and size, as one slice sees them.
        stack: lengths of the axes that nn.scan, nn.vmap and their like added, outermost first.
        axes: where in the stored array each of those axes lies, outermost first (negative: from the end).
        weights: number of parameters of all slices together.
        count: gradient rows N·T of one call, or 0 where calls differ.
        names: of its kernel and, where it has one, of its bias.
    """

    path: str
    tap: Tap
    stack: tuple[int, ...]
    axes: tuple[int, ...]
    weights: int
    count: int = 0
    names: tuple[str, ...] = ("kernel", "bias")

    @property
    def keys(self) -> tuple[str, ...]:
        """One key per slice: `path`, or `path/0`, `path/1` and so on."""
        return tuple("/".join((self.path, *map(str, i))) for i in itertools.product(*map(range, self.stack)))

    def zeros(self) -> Factors:
        """Zero dummies in the stored layout."""
        return Factors(*(jnp.zeros(self.stored(shape), self.tap.dtype) for shape in self.tap.shapes))

    def stored(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of an array that has this shape in each slice."""
        return insert_axes(shape, self.stack, self.axes)

    @property
    def eigenvalue_shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Shapes of the eigenvalues of A [S, B, d] and of G [S, B, p]."""
        groups, d, p = self.tap.rows.dimensions
        slices = math.prod(self.stack)
        return (slices, groups, d + self.tap.rows.bias), (slices, groups, p)

    def slices(self, stored: Factors) -> Factors:
        """Factors with the stacked axes in front, flattened into one: A [S, B, d, d], G [S, B, p, p], positions [S]."""
        A, G, positions = map(self.fronted, stored)
        return Factors(A, G, positions.reshape(-1))

    def fronted(self, stored: Array) -> Array:
        """A stored array with the stacked axes in front, flattened into one: [S, …]."""
        for depth, axis in enumerate(self.axes):
            # Outermost first: once it is at the front, the inner ones keep their places behind it.
            rest = stored.ndim - depth
            stored = jnp.moveaxis(stored, depth + axis % rest, depth)
        return stored.reshape(math.prod(self.stack), *stored.shape[len(self.axes) :])


@dataclass(frozen=True)
class LeftOut:
    """Parameters outside the Kronecker factors, and why.

    Attributes:
        path: of the module that holds them.
        weights: how many.
        reason: one phrase for people.
    """

    path: str
    weights: int
    reason: str


@dataclass(frozen=True)
class Coverage:
    """Which layers of a model the Fisher spectrum covers.

    Attributes:
        weights: covered weights by the keys that `eigenvalues` uses.
        left_out: everything else that has parameters, with the reason.
        unreached: keys of covered layers that the loss never reaches; their eigenvalues are zero.
        silent: keys of covered layers whose gradients are exactly zero at these weights alone, as below a head that
            starts at zero; their eigenvalues are zero, whatever the activation is.
    """

    weights: Mapping[str, int]
    left_out: tuple[LeftOut, ...]
    unreached: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Covered weights / all weights."""
        covered = sum(self.weights.values())
        return covered / max(1, covered + sum(part.weights for part in self.left_out))

    @property
    def advice(self) -> str:
        """What to do about gradients that are zero at these weights; empty where there are none."""
        if not self.silent:
            return ""
        some = ", ".join(self.silent[:3]) + (f" and {len(self.silent) - 3} more" if len(self.silent) > 3 else "")
        return (
            f"the gradients at {some} are exactly zero at these weights, as below a head that starts at zero, so are "
            "their eigenvalues, whatever the activation: let the head start from small random weights (its kernel_init"
            ", for the spectra alone Task(init=…))"
        )

    def __str__(self) -> str:
        unused = dict.fromkeys(self.unreached, ", but the loss never reaches it: its eigenvalues are zero")
        lines = [f"{key}: {n:,} weights{unused.get(key, '')}" for key, n in self.weights.items()]
        lines += [
            f"{part.path or 'the model itself'}: {part.weights:,} weights left out: {part.reason}"
            for part in self.left_out
        ]
        if self.silent:
            lines.append(self.advice)
        return "\n".join([*lines, f"covered: {self.share:.2%} of all weights"])


def shape_of(leaf: Any) -> tuple[int, ...]:
    """Shape of a stored parameter; one that is a tuple or the like, which no layer of Flax has, is so many weights."""
    if jax.tree.structure(leaf) == jax.tree.structure(0):
        return jnp.shape(leaf)
    return (sum(math.prod(jnp.shape(part)) for part in jax.tree.leaves(leaf)),)


def insert_axes(shape: tuple[int, ...], stack: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """Shape of a stored array whose slice has `shape`: inner axes are inserted first."""
    for length, axis in zip(reversed(stack), reversed(axes), strict=True):
        at = axis % (len(shape) + 1)
        shape = (*shape[:at], length, *shape[at:])
    return shape


def stack_axes(stored: tuple[int, ...], inner: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield every (stack, axes) that turns a slice's shape into the stored one, the usual axis 0 first."""
    depth = len(stored) - len(inner)
    choices = (0, -1, *range(1, len(stored)))
    for axes in itertools.product(choices, repeat=depth):
        left, stack = list(stored), []
        for axis in axes:
            if not -len(left) <= axis < len(left):
                break
            stack.append(left.pop(axis))
        else:
            if tuple(left) == inner:
                yield tuple(stack), axes


@dataclass
class Sighting:
    """A module with parameters as the trace met it: rows if it is Kronecker, else the reason."""

    rows: Rows | None = None
    reason: str = ""
    names: tuple[str, ...] = ("",)  # of its kernel and, where it has one, of its bias
    kernel: tuple[int, ...] = ()  # its shape inside, one slice
    dtype: str = "float32"
    count: int = 0  # gradient rows N·T of each call, 0 where calls differ


@dataclass
class Sightings:
    """What tracing a model once tells about its layers.

    Attributes:
        parameters: stored shape of every parameter, by module path and name.
        seen: what the trace met, by module path, in the order of the first calls.
        differentiated: paths of the layers that the model itself takes a derivative of.
    """

    parameters: dict[str, dict[str, tuple[int, ...]]]
    seen: dict[str, Sighting] = field(default_factory=dict)
    differentiated: set[str] = field(default_factory=set)

    def use(self, path: str, use: Use, out: Any) -> Any:
        """Note one call of a layer that may be Kronecker; what is returned takes the place of its output."""
        try:
            rows = use.rows_of(out)
        except UnsupportedError as error:
            self.refuse(path, str(error))
            return out
        self._note(path, use, rows, out)
        return _noting(out, lambda: self.differentiated.add(path))

    def _note(self, path: str, use: Use, rows: Rows, out: Any) -> None:
        given = out.dtype if rows.one_hot else use.a.dtype
        wide = jnp.promote_types(jnp.promote_types(out.dtype, jnp.float32), given)
        groups, _, p = rows.dimensions
        count = out.size // (groups * p)
        names = (use.kind.kernel, use.kind.bias)[: 1 + rows.bias]
        now = Sighting(rows, names=names, kernel=use.kernel, dtype=str(wide), count=count)
        before = self.seen.setdefault(path, now)
        if before.reason:
            return
        before.dtype = str(jnp.promote_types(before.dtype, wide))
        before.count = count if count == before.count else 0
        if before.rows != rows:
            before.reason = "it is called in two different ways"

    def attend(self, path: str) -> None:
        """Note that the transpose of an embedding is used too."""
        self.refuse(path, "its table is also the output layer (attend)")

    def refuse(self, path: str, reason: str) -> None:
        """Note that a module cannot be covered, whatever else is seen of it."""
        self.seen.setdefault(path, Sighting()).reason = reason

    def other(self, path: str, module: type) -> None:
        """Note a module of a type that is no layer known to be Kronecker."""
        self.seen.setdefault(path, Sighting(reason=_why_not(module.__name__)))


def sort_out(
    sightings: Sightings, settings: TapSettings, fits: Callable[[Layer], bool]
) -> tuple[tuple[Layer, ...], tuple[LeftOut, ...]]:
    """Divide a model's parameters into covered layers and the rest.

    Args:
        sightings: of the model.
        settings: of its taps.
        fits: whether the model still traces with dummies of this layer; asked only where the layout is ambiguous.

    Returns:
        The covered layers in the order of their first call, and what is left out.
    """
    covered: dict[str, Layer] = {}
    parameters = sightings.parameters
    for path, sighting in sightings.seen.items():
        held, names = parameters.get(path, {}), sighting.names
        if sighting.rows is None or sighting.reason:
            continue
        if any(name not in held for name in names):
            sighting.reason = "its weights are stored elsewhere"
            continue
        if settings.sharing == "reduce" and sighting.rows.one_hot:
            sighting.reason = 'an embedding is covered with sharing="expand" only'
            continue
        tap = Tap(path, sighting.rows, settings, sighting.dtype)
        weights = sum(math.prod(held[name]) for name in names)
        layouts = dict.fromkeys(stack_axes(held[names[0]], sighting.kernel))
        candidates = _distinct([Layer(path, tap, *layout, weights, sighting.count, names) for layout in layouts])
        fitting = candidates if len(candidates) == 1 else [c for c in candidates if fits(c)]
        if not fitting:
            sighting.reason = f"its stored kernel {held[names[0]]} is not a stack of {sighting.kernel}"
            continue
        covered[path] = fitting[0]
    left_out: list[LeftOut] = []
    for path, held in parameters.items():
        sighting = sightings.seen.get(path, Sighting(reason="the model never calls it"))
        reason, names = sighting.reason, list(held)
        if path in covered:
            reason, names = "not part of the kernel and bias", [n for n in held if n not in sighting.names]
        if names:
            count = sum(math.prod(held[name]) for name in names)
            left_out.append(LeftOut(path, count, f"{' and '.join(names)}: {reason}"))
    return tuple(covered.values()), tuple(left_out)


def _distinct(candidates: Sequence[Layer]) -> list[Layer]:
    # Axes that say the same of the kernel may differ for the dummies; only those that do are worth a trace.
    by_layout = {}
    for candidate in candidates:
        by_layout.setdefault((*map(candidate.stored, candidate.tap.shapes), *candidate.axes), candidate)
    return list(by_layout.values())


def _noting(out: Any, note: Callable[[], None]) -> Any:
    """The output as it is; a derivative of it that is taken while the model is traced is noted."""

    @jax.custom_jvp
    def identity(out: Any) -> Any:
        return out

    @identity.defjvp
    def _(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
        note()
        return primals[0], tangents[0]

    return identity(out)


def _why_not(kind: str) -> str:
    if "Norm" in kind:
        return f"{kind} scales and shifts, which is not Kronecker"
    if kind == "Act":
        return "learnt constants of an activation are not Kronecker"
    if kind == "PReLU":
        return "a learned slope is not Kronecker"
    return f"aqx knows no Kronecker form of {kind}"
