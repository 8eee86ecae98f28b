"""Constants that are learnt: functions that get some, and which parameters they are; the modules are linen and nnx."""

from __future__ import annotations

import re
from typing import Any

from aqx.tree import INPUTS, Tree, parse

_NAME = re.compile(r"c(0|[1-9][0-9]*)")


def parametrised(name: str | Tree) -> Tree:
    """Give a function f constants to learn, a·f(b·x), which start at 1 and so change nothing.

    Where x stands at several places of f, each has a constant of its own.

    Args:
        name: a function, such as `swish(x)`, or its `Tree`.

    Returns:
        The function's tree with `mul(1.0,…)` around it and around each input.

    Raises:
        ParseError: the name does not parse.
        InputError: the result is nested too deeply.

    Example:
        >>> import aqx
        >>> str(aqx.parametrised("swish(x)"))
        'mul(1.0,swish(mul(1.0,x)))'
    """
    one = Tree("1.0")

    def scaled(tree: Tree) -> Tree:
        if tree.args:
            return Tree(tree.name, tuple(map(scaled, tree.args)))
        return Tree("mul", (one, tree)) if tree.name in INPUTS else tree

    return Tree("mul", (one, scaled(parse(name))))


def is_constant(path: Any) -> bool:
    """Return whether the parameter at a path is a learnt constant of an `aqx.linen.Act` or `aqx.nnx.Act`.

    They are named c0, c1, …. Weight decay would draw them to 0, so that they should be left out of it:
    `mask=jax.tree_util.tree_map_with_path(lambda path, _: not aqx.is_constant(path), params)`.

    Args:
        path: as JAX gives it (a tuple of keys), as Flax does (a tuple of strings), or such a tuple joined by "/".

    Example:
        >>> import aqx
        >>> aqx.is_constant(("Block_0", "Act_0", "c1")), aqx.is_constant("Block_0/Dense_0/kernel")
        (True, False)
    """
    keys = path.split("/") if isinstance(path, str) else [_text(key) for key in path]
    while keys and keys[-1] in ("value", "raw_value", "_value"):  # of an NNX variable, below its name
        keys.pop()
    return bool(keys) and _NAME.fullmatch(keys[-1]) is not None


def _text(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def names_of(count: int) -> tuple[str, ...]:
    """Return the names of the parameters of so many constants.

    Example:
        >>> names_of(2)
        ('c0', 'c1')
    """
    return tuple(f"c{i}" for i in range(count))


def constants_in(params: Any, count: int) -> dict[str, list[Any]]:
    """Return the constants, so many each, of all the modules among the parameters of a model, by path.

    Example:
        >>> constants_in({"Act_0": {"c0": 0.5}, "Dense_0": {"kernel": 0}}, 1)
        {'Act_0': [0.5]}
    """
    names = names_of(count)

    def found(held: Any, path: tuple[str, ...]) -> list[tuple[str, list[Any]]]:
        if not hasattr(held, "items"):
            return []
        inner = {str(name): value for name, value in held.items()}
        if set(names) <= inner.keys() and f"c{count}" not in inner:
            return [("/".join(path), [_plain(inner[name]) for name in names])]
        return [each for name, value in inner.items() for each in found(value, (*path, name))]

    return dict(found(params, ()))


def _plain(value: Any) -> Any:
    """The array of an NNX variable, and what else is there as it is."""
    return value.get_value() if hasattr(value, "get_value") else getattr(value, "value", value)
