"""The simplest equal name: equal it is, by the fingerprint that tells classes apart, and never longer."""

from __future__ import annotations

import pytest

from aqx.evaluation import Batch, fingerprints
from aqx.simplify import full_name, simplest
from aqx.space import Space
from aqx.tree import Tree, parse

KNOWN = {
    "add(erf(x),zero(x))": "erf(x)",
    "div(arctan(x),reciprocal(x))": "mul(x,arctan(x))",
    "mul(sigmoid(x),x)": "swish(x)",
    "sub(tanh(x),negative(x))": "add(x,tanh(x))",
    "identity(gelu(identity(x)))": "gelu(x)",
    "max(zero(x),x)": "relu(x)",
    "pow(tanh(x),one(x))": "tanh(x)",
    "sum_n(tanh(x),zero(x),erf(x))": "add(erf(x),tanh(x))",
    "mul(tanh(x),tanh(x))": "square(tanh(x))",
    "min(swish(x),swish(x))": "swish(x)",
    "cosh(negative(abs(x)))": "cosh(x)",
    "nope(x)": "nope(x)",
    "x": "x",
}


@pytest.mark.parametrize(("name", "simple"), KNOWN.items())
def test_known_names(name: str, simple: str):
    assert simplest(name) == simple


def prints_of(trees: set[Tree]) -> dict[Tree, bytes]:
    """The fingerprint of each, shape by shape."""
    shapes: dict[str, list[Tree]] = {}
    for tree in trees:
        shapes.setdefault(tree.shape, []).append(tree)
    found: dict[Tree, bytes] = {}
    for group in shapes.values():
        same = [tree if tree.args else parse("identity(x)") for tree in group]
        ids = fingerprints(Batch.of_trees(same)).ids
        found |= {tree: row.tobytes() for tree, row in zip(group, ids, strict=True)}
    return found


@pytest.mark.parametrize(
    "space",
    [Space.act_bench(), Space(["unary(unary(x))"], "extended"), Space(["n-ary(unary(x),unary(x),unary(x))"])],
    ids=["act_bench", "unary", "n-ary"],
)
def test_a_simpler_name_is_of_the_same_class_and_never_longer(space: Space):
    trees = [space[i] for i in range(0, len(space), max(1, len(space) // 400))]
    pairs = [(tree, parse(simplest(str(tree)))) for tree in trees]
    changed = [(old, new) for old, new in pairs if old != new]
    assert len(changed) > len(pairs) / 100
    assert all(new.size <= old.size for old, new in changed)
    prints = prints_of({tree for pair in changed for tree in pair})
    wrong = [f"{old} is not {new}" for old, new in changed if prints[old] != prints[new]]
    assert not wrong, wrong[:20]
    assert all(simplest(str(new)) == str(new) for _, new in changed)


def test_a_bare_name_is_the_function():
    assert [full_name(name) for name in ("gelu", " tanh ", "max", "nope", "relu(x)")] == [
        "gelu(x)", "tanh(x)", "max", "nope", "relu(x)"
    ]  # fmt: skip
