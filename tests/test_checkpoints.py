"""An Activation as a part of a training state, written to a file by the libraries that people use for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization
from flax.training.train_state import TrainState

import aqx

NAMES = ["x", "relu(x)", "add(relu(x),swish(x))", "max_n(sin(x),tanh(x),x)"]


class State(TrainState):
    """A state that says which function it trains."""

    act: Any


def state_of(act: aqx.Activation) -> State:
    model = nn.Sequential([nn.Dense(3), act])
    params = model.init(jax.random.key(0), jnp.ones((2, 3)))["params"]
    return State.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-3), act=act)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_flax_writes_and_reads_an_activation(name: str, normalize: bool):
    act = aqx.activation(name, normalize=normalize)
    again = serialization.from_bytes(aqx.activation("tanh(x)"), serialization.to_bytes(act))
    assert again == act and again.name == name and hash(again) == hash(act)
    state = state_of(act)
    restored = serialization.from_bytes(state_of(aqx.activation("tanh(x)")), serialization.to_bytes(state))
    assert restored.act == act
    jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)


def test_stacked_and_traced_ones():
    acts = aqx.stack([aqx.activation(name, normalize=True) for name in ("relu(x)", "tanh(x)", "sin(x)")])
    again = serialization.from_bytes(acts, serialization.to_bytes(acts))
    jax.tree.map(np.testing.assert_array_equal, again, acts)
    with pytest.raises(TypeError, match="Activation"):
        jax.jit(lambda act: serialization.to_bytes(act))(aqx.activation("relu(x)"))


def test_flax_reads_by_name_whatever_is_registered_since():
    aqx.register("wave", jnp.sin, "unary")
    written = serialization.to_bytes(aqx.activation("wave(relu(x))"))
    aqx.register("another", jnp.cos, "unary")
    assert serialization.from_bytes(aqx.activation("x"), written).name == "wave(relu(x))"


@pytest.mark.filterwarnings("ignore")  # Orbax has much to say of one device and of itself
def test_orbax_writes_and_reads_a_state(tmp_path: Path):
    state = state_of(aqx.activation("add(relu(x),swish(x))"))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "standard", state)
        checkpointer.wait_until_finished()
        restored = [checkpointer.restore(tmp_path / "standard", jax.eval_shape(lambda: state))]
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "tree", state)
        restored.append(checkpointer.restore(tmp_path / "tree", item=state))
        checkpointer.save(tmp_path / "dict", serialization.to_state_dict(state))
        found = checkpointer.restore(tmp_path / "dict")
        restored.append(serialization.from_state_dict(state_of(aqx.activation("tanh(x)")), found))
    for one in restored:
        assert one.act == state.act and one.act.name == "add(relu(x),swish(x))"
        assert float(one.act(1.0)) == float(state.act(1.0))
        jax.tree.map(np.testing.assert_array_equal, one.params, state.params)
