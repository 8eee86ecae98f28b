"""The best functions of a search: curves and slopes beside those that everybody knows, and maps of gated units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float

from aqx.activation import Activation, activation
from aqx.errors import InputError
from aqx.numerics.settings import own_settings
from aqx.search import Confirmation, Ledger

USUAL = ("relu(x)", "gelu(x)", "swish(x)")
BEST = 5
POINTS = np.linspace(-5.0, 5.0, 241)
PLANE = np.linspace(-4.0, 4.0, 81, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class FunctionCurve:
    """A function at `POINTS`.

    Attributes:
        name: the function.
        kind: whether the search found it, or it is there to compare with.
        result: its mean result; None where it has none.
        values: f(x) [P]; nan where it is not finite.
        slopes: f′(x) [P]; nan where it is not finite.
    """

    name: str
    kind: Literal["found", "usual"]
    result: float | None
    values: Float[np.ndarray, " P"]
    slopes: Float[np.ndarray, " P"]


@dataclass(frozen=True, eq=False)
class FunctionMap:
    """A function of two inputs over the plane.

    Attributes:
        name: the function.
        result: its mean result; None where it has none.
        values: f(x, y) at `PLANE` × `PLANE`, a row for each y, ascending [R, R]; nan where it is not finite.
    """

    name: str
    result: float | None
    values: Float[np.ndarray, "R R"]


def curves_of_best(results: Ledger, confirmation: Confirmation | None) -> list[FunctionCurve]:
    """Draw the five best functions that are no baselines, by the confirmation where there is one, and the usual ones.

    A function that holds an operator which is not registered here is left out, and so is one of two inputs, of which
    `maps_of_best` makes a map.
    """
    found, means = _best(results, confirmation)
    kinds: dict[str, Literal["found", "usual"]] = {**dict.fromkeys(found, "found"), **dict.fromkeys(USUAL, "usual")}
    drawn = (curve(name, kind, means.get(name)) for name, kind in kinds.items())
    return [one for one in drawn if one is not None]


def maps_of_best(results: Ledger, confirmation: Confirmation | None) -> list[FunctionMap]:
    """Map those of the five best functions that take two inputs; none whose operators are not registered here."""
    found, means = _best(results, confirmation)
    return [
        FunctionMap(name, means.get(name), values) for name in found if (values := values_in_plane(name)) is not None
    ]


def _best(results: Ledger, confirmation: Confirmation | None) -> tuple[list[str], dict[str, float]]:
    """The best functions that are no baselines, and the means of all that have some."""
    means = {ranking.name: ranking.objective for ranking in results.ranking}
    if confirmation is not None:  # never both: they may be of two metrics, and the search's are optimistic
        means = {row.name: row.mean for row in confirmation.rows if np.isfinite(row.mean)}
    baselines = {*results.baselines.values(), *USUAL}
    ranked: Sequence[str] = [ranking.name for ranking in results.ranking]
    if confirmation is not None:
        confirmed = [row.name for row in confirmation.rows]
        ranked = [*confirmed, *(name for name in ranked if name not in confirmed)]
    return [name for name in ranked if name not in baselines][:BEST], means


def curve(name: str, kind: Literal["found", "usual"] = "found", result: float | None = None) -> FunctionCurve | None:
    """Evaluate a function and its derivative; None where an operator is not registered here, or it has two inputs."""
    try:
        act = activation(name)
    except InputError:
        return None
    if act.inputs == 2:
        return None
    drawn = (np.where(np.isfinite(y), y, np.nan) for y in values_and_slopes(act, POINTS))
    return FunctionCurve(name, kind, result, *drawn)


@own_settings()
def values_in_plane(name: str) -> Float[np.ndarray, "R R"] | None:
    """Evaluate a function of two inputs at `PLANE` × `PLANE`; None where it has one, or an operator is not registered.

    Where the function is not finite the value is nan.
    """
    try:
        act = activation(name)
    except InputError:
        return None
    if act.inputs == 1:
        return None
    values = np.asarray(act(PLANE, PLANE[:, None]))
    return np.where(np.isfinite(values), values, np.nan)


@own_settings()
def values_and_slopes(act: Activation, x: Float[np.ndarray, " P"]) -> tuple[np.ndarray, np.ndarray]:
    """Return a function and its derivative at some points, as they are in float32 [P], [P]."""
    x = np.asarray(x, np.float32)
    values, slopes = jax.jvp(act, (x,), (np.ones_like(x),))
    return np.asarray(values), np.asarray(slopes)
