"""The simplest equal name of a function, for people to read: `add(erf(x),zero(x))` is `erf(x)`."""

from __future__ import annotations

from collections.abc import Callable

from aqx.errors import InputError
from aqx.operators import COMMUTATIVE, operator_table
from aqx.tree import Tree, parse

_X = Tree("x")

# What people call functions that are more than one operator: gated units, and the square of a leaky ReLU.
NAMES = {
    "glu": "mul(sigmoid(x),y)",
    "reglu": "mul(relu(x),y)",
    "geglu": "mul(gelu(x),y)",
    "swiglu": "mul(swish(x),y)",
    "bilinear": "mul(x,y)",
    "leaky_relu_squared": "square(max(x,mul(0.5,x)))",
}


def full_name(name: str) -> str:
    """Return the function that a bare operator's name stands for, or one of `NAMES`; what is none is returned as it is.

    Example:
        >>> from aqx.simplify import full_name
        >>> full_name("gelu"), full_name("mul(x,tanh(x))"), full_name("x")
        ('gelu(x)', 'mul(x,tanh(x))', 'x')
        >>> full_name("swiglu")
        'mul(swish(x),y)'
    """
    bare = name.strip()
    known = operator_table().by_name.get(bare)
    if known is None and bare in NAMES:
        return str(parse(NAMES[bare]))
    return f"{bare}(x)" if known is not None and known.kind == "unary" else name


def simplest(name: str) -> str:
    """Return an equal function's name with fewer operators, where a rule of algebra gives one.

    The rules hold for all finite values of what they stand for. A function of two inputs stays one: `mul(x,one(y))` is
    returned as it is, and so is a name that does not parse, such as one with an operator that is not registered here.

    Example:
        >>> from aqx.simplify import simplest
        >>> simplest("add(erf(x),zero(x))"), simplest("div(arctan(x),reciprocal(x))"), simplest("mul(x,sigmoid(x))")
        ('erf(x)', 'mul(x,arctan(x))', 'swish(x)')
    """
    try:
        tree = parse(name)
        reduced = _reduced(tree)
        return str(reduced) if reduced.inputs == tree.inputs else name
    except InputError:
        return name


def _reduced(tree: Tree) -> Tree:
    if not tree.args:
        return tree
    tree = _ordered(tree.name, tuple(map(_reduced, tree.args)))
    rule = _RULES.get(tree.name)
    simpler = rule(*tree.args) if rule else None
    return tree if simpler is None else _reduced(simpler)


def _ordered(name: str, args: tuple[Tree, ...]) -> Tree:
    """Where the order does not matter: the shortest argument first, as people write x·tanh(x), and y last."""
    return Tree(name, tuple(sorted(args, key=_place)) if name in COMMUTATIVE else args)


def _place(arg: Tree) -> tuple[bool, int, str]:
    return arg.inputs == 2 and "x" not in arg.leaves, arg.size, str(arg)


def _is(tree: Tree, name: str) -> bool:
    return bool(tree.args) and tree.name == name


def _of(name: str, *args: Tree) -> Tree:
    return Tree(name, args)


def _negative(a: Tree) -> Tree | None:
    if _is(a, "negative"):
        return a.args[0]
    if _is(a, "sub"):
        return _of("sub", a.args[1], a.args[0])
    return a if _is(a, "zero") else None


def _even(name: str, *inside: str) -> Callable[[Tree], Tree | None]:
    """A function of |a| alone."""

    def rule(a: Tree) -> Tree | None:
        return _of(name, a.args[0]) if a.name in ("negative", *inside) and a.args else None

    return rule


def _add(a: Tree, b: Tree) -> Tree | None:
    for one, other in ((a, b), (b, a)):
        if _is(one, "zero"):
            return other
        if _is(one, "negative"):
            return _of("sub", other, one.args[0])
    return None


def _sub(a: Tree, b: Tree) -> Tree | None:
    if _is(b, "zero"):
        return a
    if _is(a, "zero"):
        return _of("negative", b)
    return _of("add", a, b.args[0]) if _is(b, "negative") else None


def _mul(a: Tree, b: Tree) -> Tree | None:
    for one, other in ((a, b), (b, a)):
        if _is(one, "one"):
            return other
        if _is(one, "reciprocal"):
            return _of("div", other, one.args[0])
        if _is(one, "negative"):
            return _of("negative", _of("mul", *sorted((one.args[0], other), key=_place)))
        if _is(one, "sigmoid") and other == one.args[0]:
            return _of("swish", other)
    return _of("square", a) if a == b else None


def _div(a: Tree, b: Tree) -> Tree | None:
    if _is(b, "one"):
        return a
    if _is(a, "one"):
        return _of("reciprocal", b)
    return _of("mul", a, b.args[0]) if _is(b, "reciprocal") else None


def _pow(a: Tree, b: Tree) -> Tree | None:
    if _is(b, "one"):
        return a
    return _of("one", _X) if _is(b, "zero") or _is(a, "one") else None


def _extreme(zero: str | None) -> Callable[[Tree, Tree], Tree | None]:
    """The rules of max (or min); `zero` is what max(x, 0) is called."""

    def rule(a: Tree, b: Tree) -> Tree | None:
        if a == b:
            return a
        for one, other in ((a, b), (b, a)):
            if zero and _is(one, "zero"):
                return _of(zero, other)
        return None

    return rule


def _constant(name: str) -> Callable[[Tree], Tree | None]:
    return lambda a: None if a == _X else _of(name, _X)


def _of_many(two: str, neutral: str | None) -> Callable[..., Tree | None]:
    """The rules of an n-ary operator: what changes nothing goes, and of two arguments it is the binary one."""

    def rule(*args: Tree) -> Tree | None:
        kept = [arg for arg in args if not (neutral and _is(arg, neutral))]
        if not kept:
            return args[0]
        if len(kept) <= 2:
            return kept[0] if len(kept) == 1 else _of(two, *kept)
        return None if len(kept) == len(args) else _of(f"{_MANY[two]}", *kept)

    return rule


_MANY = {"add": "sum_n", "mul": "prod_n", "max": "max_n", "min": "min_n"}
_RULES: dict[str, Callable[..., Tree | None]] = {
    "identity": lambda a: a,
    "negative": _negative,
    "reciprocal": lambda a: a.args[0] if _is(a, "reciprocal") else None,
    "abs": _even("abs", "abs"),
    "square": _even("square", "abs"),
    "cosh": _even("cosh", "abs"),
    "zero": _constant("zero"),
    "one": _constant("one"),
    "relu": lambda a: a if _is(a, "relu") else None,
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "pow": _pow,
    "max": _extreme("relu"),
    "min": _extreme(None),
    "sum_n": _of_many("add", "zero"),
    "prod_n": _of_many("mul", "one"),
    "max_n": _of_many("max", None),
    "min_n": _of_many("min", None),
}
