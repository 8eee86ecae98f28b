"""What functions cost: nanoseconds for the value and gradient of one element, as sums over a function's operators.

A function that is closed over is compiled into loops of its own, so to measure one takes a compilation, 0.1 to 0.5 s:
days for a space of a million. Measured are its operators instead, by a small program each, once per kind of device and
version of JAX. A function costs what every function does (x and a gradient are read, a value and a gradient written; of
two inputs half as much again, for six arrays in place of four), and what each of its operators adds to that. How near
this comes to compiled functions is in the guide of benchmarks: it orders functions well, and of one alone it is no more
than an estimate.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from aqx.machine import processor_name, version_of
from aqx.operators import operator_table
from aqx.store import Database
from aqx.store import costs as stored
from aqx.tree import INPUTS, Tree, parse

if TYPE_CHECKING:  # who looks at what was measured needs no JAX
    import jax
    import numpy as np
    from jaxtyping import Float, UInt64

LEAF = "x"  # stands for what every function costs, an operator or none
UNIT = "relu(x)"
# The arrays of one call fit a core's cache on a CPU. On a GPU they do not fit: it is as fast as its memory, or slower.
_ELEMENTS = {"cpu": 1 << 15}
_OTHERS = 1 << 24
_ROUNDS, _CALLS = 9, 5
_OPERATOR = re.compile(r"(\w+)\(")

K = TypeVar("K")
# Nanoseconds per element of functions, by their names.
Measure = Callable[[Sequence[str]], Sequence[float]]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class CostReport:
    """What `compute_costs` has done.

    Attributes:
        device: what was measured on.
        operators: how many operators were measured now.
        classes: how many classes have a cost now that had none, or one by another name.
        looked_at: of how many classes it is known now, and was not, what 16-bit floats make of them.
        unknown: how many classes are left out, as an operator of their names is not registered here.
    """

    device: str
    operators: int
    classes: int
    looked_at: int
    unknown: int = 0

    def __str__(self) -> str:
        text = f"{self.operators:,} operators measured on {self.device}; {self.classes:,} classes have a cost now"
        text += f", and of {self.looked_at:,} it is known what 16-bit floats make of them"
        return text + f"; {self.unknown:,} have operators that are not registered here" * (self.unknown > 0)


def device_here() -> str:
    """Return the kind of device that this process computes on, and of a CPU which one."""
    import jax

    device = jax.devices()[0]
    return processor_name() if device.platform == "cpu" else device.device_kind


def versions_here() -> str:
    """Return what else a measurement depends on."""
    import jax

    return f"aqx {version_of('aqx')}, jax {jax.__version__}"


def measure_functions(
    names: Sequence[str], *, clock: Callable[[], float] = time.perf_counter, elements: int | None = None
) -> list[float]:
    """Measure how long compiled functions take for value and gradient, in nanoseconds per element.

    Of 9 rounds over all of them the median counts, and of each round the quickest of 5 calls: what else the machine
    does makes a call slower, and none quicker.

    Args:
        names: of the functions, each compiled by itself: half a second or less.
        clock: seconds.
        elements: of the array; by default such as a core's cache holds, or on an accelerator 16 million.
    """
    import statistics  # takes as long as a transaction

    import jax

    from aqx.numerics.settings import own_settings

    count = elements or _ELEMENTS.get(jax.devices()[0].platform, _OTHERS)
    with own_settings():
        key_x, key_g = jax.random.split(jax.random.key(0))
        x, g = jax.random.normal(key_x, (count,)), jax.random.normal(key_g, (count,))
        programs = [jax.jit(_value_and_gradient(name)).lower(x, g).compile() for name in names]
        for program in programs:
            jax.block_until_ready(program(x, g))
        rounds = [[_quickest(program, x, g, clock) for program in programs] for _ in range(_ROUNDS)]
    return [1e9 * statistics.median(times) / count for times in zip(*rounds, strict=True)]


def _value_and_gradient(name: str) -> Callable[[jax.Array, jax.Array], Any]:
    import jax

    from aqx.activation import activation

    act = activation(name)

    def run(x: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pull = jax.vjp(act, x)
        return y, *pull(g)

    return run


def _quickest(program: Callable[..., Any], x: jax.Array, g: jax.Array, clock: Callable[[], float]) -> float:
    import jax

    took: list[float] = []
    for _ in range(_CALLS):
        start = clock()
        jax.block_until_ready(program(x, g))
        took.append(clock() - start)
    return min(took)


def cost_of(function: str | Tree, nanoseconds: Mapping[str, float]) -> float:
    """Return what a function costs, in nanoseconds per element of value and gradient.

    An n-ary operator costs n − 1 times what it does with two arguments. What does not depend on x, as it stands in
    `zero(…)` or `one(…)` or is made of numbers, costs nothing: compilers leave it out.

    Args:
        function: its name or tree.
        nanoseconds: what is measured of each of its operators, and of `LEAF`.

    Raises:
        KeyError: an operator is missing.

    Example:
        >>> from aqx.costs import cost_of
        >>> known = {"x": 0.5, "tanh": 2.0, "mul": 0.1, "add": 0.1, "max_n": 0.2, "one": 0.0}
        >>> round(cost_of("max_n(x,tanh(x),mul(0.5,x))", known), 3), cost_of("add(x,one(tanh(x)))", known)
        (3.0, 0.6)
    """
    operators = _OPERATOR.findall(str(function))
    table = operator_table().by_name
    arrays = nanoseconds[LEAF] * (1.5 if _SECOND.search(str(function)) else 1.0)
    if not _SPECIAL.search(str(function)) and not any(table[name].kind == "n-ary" for name in operators):
        return arrays + sum(nanoseconds[name] for name in operators)  # most, which need not be parsed
    return arrays + (_sum_of(parse(function), nanoseconds) or 0.0)


_SECOND = re.compile(r"\by\b(?!\()")
_SPECIAL = re.compile(r"\b(?:zero|one)\(|\d(?=[,)])")  # a constant, or a number, for which a name's digit may stand


def _sum_of(tree: Tree, nanoseconds: Mapping[str, float]) -> float | None:
    """What the operators of a tree cost; None where it does not depend on x."""
    if not tree.args:
        return 0.0 if tree.name in INPUTS else None
    parts = [part for arg in tree.args if (part := _sum_of(arg, nanoseconds)) is not None]
    if not parts or tree.name in ("zero", "one"):
        return None
    return nanoseconds[tree.name] * max(len(tree.args) - 1, 1) + sum(parts)


def measure_operators(operators: Iterable[str], measure: Measure | None = None) -> dict[str, float]:
    """Measure what operators add to what every function costs, and that (`LEAF`), in nanoseconds per element.

    Args:
        operators: their names.
        measure: how functions are measured; default `measure_functions`.
    """
    names = list(operators)
    base, *whole = (measure or measure_functions)([_BARE, *map(_probe, names)])
    # The cheapest vanish in the noise; none makes a function cheaper.
    return {LEAF: base, **{name: max(took - base, 0.0) for name, took in zip(names, whole, strict=True)}}


_BARE = "mul(0.7,x)"  # x alone might be returned as it is, without a loop


def _probe(operator: str) -> str:
    """A function of one operator, whose arguments are not the same: x − x would be no subtraction."""
    return f"{operator}(x)" if operator_table().by_name[operator].kind == "unary" else f"{operator}(x,{_BARE})"


def compute_costs(
    db: str | Database,
    also: Mapping[str, str] | None = None,
    *,
    again: bool = False,
    sixteen_bits: bool = True,
    measure: Measure | None = None,
    progress: Progress | None = None,
) -> CostReport:
    """Store what candidates and trained functions cost on this device, and what 16-bit floats make of them.

    Functions with an operator that is not registered here are left out. What is stored already is left, so that the
    same call costs nothing; measurements of other versions of aqx and JAX are replaced.

    Args:
        db: a database.
        also: names of other functions, by class.
        again: measure all operators anew.
        sixteen_bits: whether to look at those, too.
        measure: how functions are measured, in nanoseconds per element; default `measure_functions`.
        progress: called as progress(done, total, note).

    Returns:
        What was done.
    """
    db = db if isinstance(db, Database) else Database(db)
    device, versions = device_here(), versions_here()
    known = {} if again else stored.operator_costs(db, device, versions)
    wanted = stored.classes_without_cost(db, device if known else "")
    priced = {id_ for id_, costs in stored.costs_of(db, also or ()).items() if known and device in costs}
    wanted |= {id_: name for id_, name in (also or {}).items() if id_ not in wanted and id_ not in priced}
    wanted, unknown = _registered(wanted)
    others = [*stored.trained_names(db), *(also or {}).values()]  # may be other names of classes that have a cost
    names = {*wanted.values(), *_registered(dict(enumerate(others)))[0].values()}
    used = {operator for name in names for operator in _OPERATOR.findall(name)}
    missing = sorted(({"relu"} | used) - known.keys())
    found: dict[str, float] = {}
    for start in range(0, len(missing), _TOGETHER):
        if progress:
            progress(start, len(missing), missing[start])
        measured = measure_operators(missing[start : start + _TOGETHER], measure)
        found = measured | found  # what every function costs is measured beside each, and the first stays
    if found:
        stored.add_operator_costs(db, device, versions, found, replace=again)
        known = stored.operator_costs(db, device, versions)  # another process may have been quicker
    unit = cost_of(UNIT, known) if wanted else 1.0
    costs = [cost_of(name, known) for name in wanted.values()]
    if wanted:
        stored.add_class_costs(db, device, wanted, costs, [cost / unit for cost in costs])
    looked_at = _look_at_precision(db, also or {}) if sixteen_bits else 0
    if progress:
        progress(len(missing), len(missing), "")
    return CostReport(device, len(missing), len(wanted), looked_at, unknown)


def _registered(names: Mapping[K, str]) -> tuple[dict[K, str], int]:
    """Those of some functions all of whose operators are registered here, and how many others there are."""
    table = operator_table().by_name
    kept = {id_: name for id_, name in names.items() if all(map(table.__contains__, _OPERATOR.findall(name)))}
    return kept, len(names) - len(kept)


def costs_by_name(db: Database, names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return what functions cost relative to relu, by the device that this was measured on, the last one first.

    Stored is what a class costs by its simplest name; this is what one of its functions costs by its own.

    Args:
        db: a database.
        names: of functions; a device is missing where one of the operators was not measured on it.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    known_here, _ = _registered({name: name for name in found})
    for device, known in stored.operators_by_device(db).items():
        unit = cost_of(UNIT, known)
        for name in known_here:
            if all(map(known.__contains__, _OPERATOR.findall(name))):
                found[name][device] = cost_of(name, known) / unit
    return found


def known_costs(db: Database) -> tuple[UInt64[np.ndarray, "C 2"], Float[np.ndarray, " C"]]:
    """Return the classes whose cost on this device is stored, by the halves of their ids, and it relative to relu's."""
    return stored.cost_matrix(db, device_here())


_TOGETHER = 12  # operators measured in turns: what slows the machine slows all of them


def _look_at_precision(db: Database, also: Mapping[str, str]) -> int:
    """Store what 16-bit floats make of classes of which nobody has looked yet, and return how many they were."""
    from aqx.evaluation import batches_of, precision

    wanted = stored.classes_without_precision(db)
    looked_at = stored.precision_of(db, also)
    wanted |= {id_: name for id_, name in also.items() if id_ not in looked_at}
    wanted, _ = _registered(wanted)
    class_ids = list(wanted)
    for rows, batch in batches_of([parse(name) for name in wanted.values()]):
        stored.add_precision(db, [class_ids[row] for row in rows], precision(batch).flags())
    return len(wanted)
