"""`population`: K functions of one shape train as one program, in chunks that fit the memory, on all local devices."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Shaped

from aqx.activation import Activation, activation, stack
from aqx.constants import WRITTEN, numbers_of
from aqx.errors import InputError
from aqx.operators import operator_table
from aqx.tree import WILDCARD, parse

TrainMany = Callable[[Activation, Sequence[int] | np.ndarray], dict[str, Shaped[np.ndarray, " K"]]]

AXIS = "members"
WIDEST = 2048  # members of a chunk per device: more of them no longer fill a GPU better, and wait longer for results
_OPERATOR = re.compile(r"([^\W\d]\w*)(?=\()")
_log = logging.getLogger("aqx.population")


def population(
    fn: Callable[[Activation, Any], Mapping[str, Any]],
    *,
    prepare: Callable[[int], Any] | None = None,
    width: int | None = None,
) -> TrainMany:
    """Make a function that trains K activations of one shape together from one that trains a single one.

    On a GPU the members are a batch axis of one program (`jax.vmap`); on a CPU, where a batched switch would evaluate
    every operator, they follow one another. They are shared out over all local devices. Where a chunk of them does not
    fit the memory, it is halved. Arrays that `fn` closes over, its data, are kept on the devices once.

    What depends on the seed alone is computed once where all members have the same seed.

    Args:
        fn: `fn(act, seed) -> {metric: scalar}`, pure: the whole training, e.g. by `jax.lax.scan`, from a traced seed
            (an unsigned 32-bit integer) and a traced activation.
        prepare: `prepare(seed)` returns arrays which need the host, e.g. NumPy's order of the batches; then
            `fn(act, prepare(seed))` is called in place of `fn(act, seed)`.
        width: members of a chunk at most; default as many as fit, up to 2,048 per device, on a CPU one per device.

    Returns:
        `train_many(acts, seeds)`: acts is a stack of K activations (`aqx.stack`), seeds are K integers ≥ 0; it returns
        an array [K] per metric. A member's values are those of `fn` alone, to rounding; nan in one touches no other.

    Raises:
        InputError: `width` is below 1; when called: acts is no stack, seeds are not one per member, or `fn` returns
            anything but scalars by name.

    Example:
        >>> import aqx, jax
        >>> def descend(act, seed):
        ...     x = jax.random.normal(jax.random.key(seed))
        ...     return {"lowest": jax.lax.fori_loop(0, 50, lambda _, x: x - 0.1 * jax.grad(act)(x), x)}
        >>> train_many = aqx.population(descend)
        >>> acts = aqx.stack([aqx.activation("square(x)"), aqx.activation("cosh(x)")])
        >>> print(train_many(acts, [0, 0])["lowest"].round(2))
        [0.   0.01]
    """
    if width is not None and width < 1:
        raise InputError(f"width={width} is too few members; give 1 or more")
    return _Population(fn, prepare or _as_uint32, width)


def unstack(acts: Activation, row: int) -> Activation:
    """Return one member of a stack, concrete again.

    Example:
        >>> import aqx
        >>> unstack(aqx.stack([aqx.activation("relu(x)"), aqx.activation("abs(x)")]), 1).name
        'abs(x)'
    """
    return jax.tree.map(lambda leaf: np.asarray(leaf)[row], acts)


def shape_of(name: str) -> tuple[str, list[str]]:
    """Return the shape of a function, and its operators in preorder, without making a tree of it.

    Half a million names take seconds; to parse them takes minutes. What is no function's name is found by `stack_of`.

    Example:
        >>> shape_of("max(relu(x),cosh(elu(x)))")
        ('binary(unary(x),unary(unary(x)))', ['max', 'relu', 'cosh', 'elu'])
    """
    by_name = operator_table().by_name
    parts = _OPERATOR.split(name)  # what follows an operator, and what stands between two, in turn
    operators = parts[1::2]
    try:
        parts[1::2] = [by_name[operator].kind for operator in operators]
    except KeyError:
        return parse(name).shape, operators  # raises, and says which it is
    return WRITTEN.sub(WILDCARD, "".join(parts)), operators


def stack_of(names: Sequence[str]) -> Activation:
    """Return the stack of the functions of these names, as `aqx.stack` of their activations.

    Raises:
        ParseError: a name does not parse.
        InputError: there are none, they differ in shape, or they are of y alone, which is a function of one input.

    Example:
        >>> [unstack(stack_of(["relu(x)", "abs(x)"]), row).name for row in (0, 1)]
        ['relu(x)', 'abs(x)']
    """
    shapes, operators = zip(*map(shape_of, names), strict=True) if names else ((), ())
    if len(set(shapes)) != 1:
        return stack([activation(name) for name in names])  # spaces in a name, or an error
    first = activation(names[0])
    if first.schema.inputs == 2 and "x" not in first.schema.leaves:
        raise InputError(f"{names[0]} takes y alone; a function of one input is written in x")
    opcodes = np.array([[first.table.opcodes[name] for name in each] for each in operators], np.int32)
    numbers = np.array([numbers_of(name) for name in names], np.float64)
    columns = (tuple(np.ascontiguousarray(each.T)) for each in (opcodes, numbers))
    return Activation(first.schema, first.table, next(columns), (), next(columns))


def members(acts: Activation, seeds: Any) -> list[int]:
    """Return the seeds of a stack's members as Python's integers.

    Raises:
        InputError: acts is no stack, or there is not one seed ≥ 0 per member.
    """
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(acts)}
    if not isinstance(acts, Activation) or () in sizes or len(sizes) > 1:
        raise InputError(f"acts={acts!r} is not a stack of activations; make one by aqx.stack([…])")
    array = np.asarray(seeds) if np.size(seeds) else np.zeros(0, np.int64)
    if array.ndim != 1 or not (array.dtype == object or np.issubdtype(array.dtype, np.integer)):
        raise InputError(f"seeds are {array.dtype} {list(array.shape)}; give K integers, one for each member")
    found: list[int] = [int(seed) for seed in array.tolist()]
    if not found or sizes - {(len(found),)} or min(found) < 0:
        count = next(iter(sizes), (len(found),))[0]
        raise InputError(f"seeds={found[:8]!r} has {len(found)} for {count} activations; give one ≥ 0 for each")
    return found


@dataclass(frozen=True, eq=False)
class _Program:
    """A compiled program: `run(index, leaves, prepared, constants)`, with what it takes of the memory."""

    run: Callable[..., Any]
    names: tuple[str, ...]
    constants: Any


class _TooWideError(Exception):
    """A chunk will not fit, by so many times."""

    def __init__(self, times: float):
        super().__init__()
        self.times = times


class _Population:
    """What `population` returns; it keeps the compiled programs, and which width fits, per shape."""

    def __init__(self, fn: Callable[..., Any], prepare: Callable[[int], Any], width: int | None):
        self.fn, self.prepare, self.width = fn, prepare, width
        self.__module__ = getattr(fn, "__module__", __name__)
        self._programs: dict[Any, dict[int, _Program]] = {}
        self._limits: dict[Any, int] = {}

    def __call__(self, acts: Activation, seeds: Any) -> dict[str, Shaped[np.ndarray, " K"]]:
        seed_list = members(acts, seeds)
        devices = _devices()
        leaves, structure = jax.tree.flatten(jax.tree.map(_as_jax_has_it, acts))
        # Members one at a time share a seed with all their chunk: they need no second program.
        same = len(set(seed_list)) == 1 or self._most(devices) == 1
        key = structure, same, tuple(devices)
        found: list[dict[str, np.ndarray]] = []
        done, count = 0, len(seed_list)
        while done < count:
            width = self._width(key, count - done, devices)
            # The last chunk is filled up with its last member, so that one program serves all.
            rows = np.minimum(np.arange(done, done + width), count - 1)
            chunk = [leaf[rows] for leaf in leaves]
            prepared = self._prepared([seed_list[row] for row in rows.tolist()], same)
            try:
                values = self._run(key, width, chunk, prepared)
            except (jax.errors.JaxRuntimeError, _TooWideError) as error:
                times = _times_too_wide(error)
                if times is None or width <= len(devices):
                    raise
                self._narrow(key, width / len(devices) / times, len(devices))
                continue
            found.append({name: value[: count - done] for name, value in values.items()})
            done += width
        return {name: np.concatenate([values[name] for values in found]) for name in found[0]}

    def _most(self, devices: Sequence[Any]) -> int:
        """Members of a chunk at most, a multiple of the devices."""
        each = 1 if _one_by_one(devices[0]) else WIDEST
        return (-(-self.width // len(devices)) if self.width else each) * len(devices)

    def _width(self, key: Any, left: int, devices: Sequence[Any]) -> int:
        """Members of the next chunk: equal shares of what is left, by a program that is there if one is wide enough."""
        count, most = len(devices), self._most(devices)
        most = min(most, self._limits.get(key, most))
        share = -(-left // -(-left // most))
        width = -(-share // count) * count
        # Compiling another program costs more than members too many, unless these are very many.
        there = [known for known in self._programs.get(key, {}) if width <= known <= min(most, 64 * width)]
        return min(there, default=width)

    def _narrow(self, key: Any, each: float, devices: int) -> None:
        limit = self._limits[key] = int(np.ceil(each)) * devices
        _log.info("%s does not fit the memory; going on with %d members at a time", key[0], limit)
        for known in [known for known in self._programs.get(key, {}) if known > limit]:
            del self._programs[key][known]

    def _prepared(self, seeds: list[int], same: bool) -> Any:
        """What `prepare` gives for a seed, or stacked for several; each seed is prepared once."""
        wanted = dict.fromkeys(seeds[:1] if same else seeds)
        by_seed = {seed: jax.tree.map(_as_jax_has_it, self.prepare(seed)) for seed in wanted}
        if same:
            return by_seed[seeds[0]]
        forms = {seed: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for seed, tree in by_seed.items()}
        for seed, form in forms.items():
            if form != forms[seeds[0]]:
                raise InputError(f"prepare({seed}) and prepare({seeds[0]}) return arrays of different shapes or types")
        return jax.tree.map(lambda *leaves: np.stack(leaves), *(by_seed[seed] for seed in seeds))

    def _run(self, key: Any, width: int, leaves: list[np.ndarray], prepared: Any) -> dict[str, np.ndarray]:
        """Run one chunk, and compile its program where it is not there."""
        structure, same, devices = key
        arrays: Any = (np.arange(width, dtype=np.int32), leaves, prepared)
        mesh = Mesh(np.array(devices), (AXIS,)) if len(devices) > 1 else None
        if mesh is not None:
            split, whole = (NamedSharding(mesh, spec) for spec in (P(AXIS), P()))
            arrays = jax.device_put(arrays, (split, split, whole if same else split))
        programs = self._programs.setdefault(key, {})
        if width not in programs:
            programs[width] = self._compile(structure, same, devices, mesh, arrays)
        program = programs[width]
        values = jax.device_get(program.run(*arrays, program.constants))
        return dict(zip(program.names, map(np.asarray, values), strict=True))

    def _compile(self, structure: Any, same: bool, devices: Sequence[Any], mesh: Mesh | None, arrays: Any) -> _Program:
        one_by_one = _one_by_one(devices[0])
        jitted, names, constants = self._traceable(structure, same, one_by_one, mesh, arrays)
        constants = jax.device_put(constants, devices[0] if mesh is None else NamedSharding(mesh, P()))
        compiled = jitted.lower(*arrays, constants).compile()
        if len(arrays[0]) > len(devices):
            _check_memory(compiled, devices[0])
        return _Program(compiled, tuple(names), constants)

    def _traceable(
        self, structure: Any, same: bool, one_by_one: bool, mesh: Mesh | None, arrays: Any
    ) -> tuple[Any, list[str], Any]:
        """The jitted program `run(index, leaves, prepared, constants)`, the names of its values, and its constants."""
        _, leaves, prepared = arrays
        names: list[str] = []

        def member(leaves: Any, prepared: Any) -> list[Any]:
            metrics = self.fn(jax.tree.unflatten(structure, leaves), prepared)
            names[:] = _checked_names(metrics)
            return [jnp.asarray(metrics[name]) for name in names]

        def one(leaf: Any, whole: bool = False) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape if whole else leaf.shape[1:], leaf.dtype)

        # What `fn` closes over becomes arguments: as constants, data would stand in the program's text.
        closed = jax.make_jaxpr(member)(jax.tree.map(one, leaves), jax.tree.map(partial(one, whole=same), prepared))

        def run(index: Any, leaves: Any, prepared: Any, constants: Any) -> list[Any]:
            alone = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, constants))

            def member(index: Any, leaves: Any, prepared: Any) -> list[Any]:
                return alone(*leaves, *jax.tree.leaves(prepared))

            if not one_by_one:
                return jax.vmap(member, in_axes=(0, 0, None if same else 0))(index, leaves, prepared)
            if same:
                return jax.lax.map(lambda each: member(each[0], each[1], prepared), (index, leaves))
            return jax.lax.map(lambda each: member(each[0], each[1], each[2]), (index, leaves, prepared))

        if mesh is not None:
            specs = (P(AXIS), P(AXIS), P() if same else P(AXIS), P())
            # Members know nothing of each other, and kernels do not say over which axes they vary.
            run = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False)
        # Measured on a CPU: level 1 compiles a third faster, and the built-in tasks' programs run as fast.
        options = {"xla_backend_optimization_level": 1} if one_by_one else None
        return jax.jit(run, compiler_options=options), names, list(closed.consts)


def _as_jax_has_it(leaf: Any) -> np.ndarray:
    """An array of the dtype that JAX would give it: constants are Python's floats, which are of 64 bits."""
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype)) if array.dtype.kind in "iuf" else array


def _as_uint32(seed: int) -> np.uint32:
    return np.uint32(seed % 2**32)


def _devices() -> list[Any]:
    """The local devices, or the one that the caller has made the default."""
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    if chosen is None:
        return jax.local_devices()
    return jax.local_devices(backend=chosen)[:1] if isinstance(chosen, str) else [chosen]


def _one_by_one(device: Any) -> bool:
    """Whether members follow one another: measured on a CPU, a batched switch costs six times a loop."""
    return device.platform == "cpu"


def _checked_names(metrics: Any) -> list[str]:
    if not isinstance(metrics, Mapping):
        raise InputError(f"fn must return {{metric: scalar}}, but it returned a value of type {type(metrics).__name__}")
    for name, value in metrics.items():
        if not isinstance(name, str) or jnp.shape(value) != ():
            raise InputError(f"fn must return {{metric: scalar}}, but {name!r} has the shape {jnp.shape(value)}")
    return list(metrics)


def _check_memory(compiled: Any, device: Any) -> None:
    """Raise where a program needs more than is free, before an allocation fails; a CPU does not tell."""
    limits = device.memory_stats() or {}
    needs = compiled.memory_analysis()
    if needs is None or "bytes_limit" not in limits:
        return
    need = needs.temp_size_in_bytes + needs.output_size_in_bytes + needs.argument_size_in_bytes
    free = limits["bytes_limit"] - limits.get("bytes_in_use", 0)
    if need > free:
        raise _TooWideError(need / max(free, 1))


def _times_too_wide(error: Exception) -> float | None:
    """By how much a chunk has to shrink; None where the error is no lack of memory."""
    if isinstance(error, _TooWideError):
        return float(2 ** np.ceil(np.log2(error.times)))
    return 2.0 if "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error) else None
