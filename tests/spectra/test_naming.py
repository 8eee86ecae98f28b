"""Activations of stored names: those of `aqx.activation`, with fewer operators in their table."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import aqx
from aqx.activation import activation
from aqx.errors import ParseError
from aqx.spectra.naming import Namer
from aqx.store import Database, operators_of_classes

NAMES = ["x", "relu(x)", "add(relu(x),tanh(erf(x)))", "sum_n(relu(x),x,max(x,erf(x)))", "max(tanh(x),erf(x))"]


def test_names_become_the_functions_they_name():
    namer = Namer(["relu", "tanh", "erf", "add", "max", "sum_n"])
    acts = namer(NAMES)
    assert acts == [activation(name) for name in NAMES]
    assert [act.name for act in acts] == NAMES
    # One structure per shape, over all calls: a compiled program each.
    again = namer(["add(tanh(x),erf(relu(x)))", "tanh(x)"])
    assert jax.tree.structure(again[0]) == jax.tree.structure(acts[2])
    assert jax.tree.structure(again[1]) == jax.tree.structure(acts[1])
    assert [len(acts[1].table.by_kind[kind]) for kind in ("unary", "binary", "n-ary")] == [3, 2, 1]
    x = np.linspace(-2, 2, 5, dtype=np.float32)
    np.testing.assert_array_equal(jax.jit(lambda act, x: act(x))(acts[2], x), activation(NAMES[2])(x))


def test_a_name_with_another_operator_is_found_among_all():
    (act,) = Namer(["relu"])(["mul(relu(x),gelu(x))"])
    assert act == activation("mul(relu(x),gelu(x))")
    with pytest.raises(ParseError, match="unknown operator 'gone'"):
        Namer(["relu", "gone"])(["gone(x)"])


def test_operators_registered_by_a_user_are_there():
    aqx.register("Twice_2", lambda x: 2 * x, "unary")
    (act,) = Namer(["Twice_2"])(["Twice_2(x)"])
    assert act.name == "Twice_2(x)" and float(act(1.5)) == 3


def test_the_operators_of_a_database(db_path):
    db = Database(db_path, create=True)
    assert operators_of_classes(db) == []
    with db.transaction() as con:
        for i, name in enumerate(NAMES):
            con.execute(
                "INSERT INTO class_info (class_id, name, size, finite, finite_at_0, constant) "
                "VALUES (?, ?, 1, true, true, false)",
                [f"00000000-0000-0000-0000-00000000000{i}", name],
            )
    assert operators_of_classes(db) == ["add", "erf", "max", "relu", "sum_n", "tanh"]
