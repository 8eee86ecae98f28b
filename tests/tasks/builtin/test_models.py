"""The published models: their weights counted by hand, their parts, their activations, gradients and Fisher spectra."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from aqx import fisher, losses
from aqx.activation import activation
from aqx.errors import InputError
from aqx.tasks.builtin.cifar import MODELS, in_batch_mode
from aqx.tasks.builtin.models import AllCNNC, MobileViTv2, ResNet, ViT, mobilevit_v2, resnet

pytestmark = pytest.mark.usefixtures("quick_to_compile")

CIFAR_STRIDES = (1, 1, 1, 2, 2, 2)
# Each model small enough to compile and run, and what applies it for Fisher features.
SMALL: dict[str, tuple[Any, tuple[int, ...], Any]] = {
    "all-cnn-c": (lambda act: AllCNNC(act), (4, 16, 16, 3), None),
    "resnet": (lambda act: ResNet(act, blocks=2), (4, 8, 8, 3), in_batch_mode),
    "mobilevit": (lambda act: MobileViTv2(act, 10, 0.25, (1, 1, 2, 1, 2, 2)), (4, 16, 16, 3), in_batch_mode),
    "vit": (lambda act: ViT(act, width=12, depth=3, mlp_width=20), (4, 8, 8, 3), None),
}
names = pytest.mark.parametrize("name", SMALL)
slow = pytest.mark.slow


def shapes_of(model: nn.Module, *shape: int) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape or (1, 32, 32, 3)))


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def conv(size: int, d: int, f: int, bias: bool = False) -> int:
    return size * size * d * f + (f if bias else 0)


def dense(d: int, f: int) -> int:
    return d * f + f


def norm(d: int) -> int:
    return 2 * d


@pytest.mark.parametrize("classes", [10, 100])
def test_all_cnn_c_weights_by_layer(classes: int):
    params = shapes_of(AllCNNC(nn.relu, classes))["params"]
    layers = [count(params[f"Conv_{i}"]) for i in range(9)]
    assert layers == [2688, 83040, 83040, 166080, 331968, 331968, 331968, 37056, 193 * classes]
    assert len(params) == 9


@pytest.mark.parametrize("classes", [10, 100])
def test_resnet_weights(classes: int):
    stage_1 = 18 * (conv(3, 16, 16) + norm(16))
    stage_2 = conv(3, 16, 32) + 17 * conv(3, 32, 32) + 18 * norm(32)
    stage_3 = conv(3, 32, 64) + 17 * conv(3, 64, 64) + 18 * norm(64)
    by_hand = conv(3, 3, 16) + norm(16) + stage_1 + stage_2 + stage_3 + dense(64, classes)
    variables = shapes_of(ResNet(nn.relu, classes))
    assert count(variables["params"]) == by_hand and (classes == 100 or by_hand == 853_018)
    assert count(variables["batch_stats"]) == norm(16) * 19 + norm(32) * 18 + norm(64) * 18


def inverted(d: int, f: int) -> int:
    return conv(1, d, 2 * d) + norm(2 * d) + conv(3, 1, 2 * d) + norm(2 * d) + conv(1, 2 * d, f) + norm(f)


def mobilevit_block(f: int, depth: int) -> int:
    d = f // 2
    attention = dense(d, 1 + 2 * d) + dense(d, d)
    transformer = norm(d) + attention + norm(d) + dense(d, 2 * d) + dense(2 * d, d)
    local = conv(3, 1, f) + norm(f) + conv(1, f, d)
    return local + depth * transformer + norm(d) + conv(1, d, f) + norm(f)


@pytest.mark.parametrize(("classes", "strides", "side"), [(1000, (2, 1, 2, 2, 2, 2), 256), (10, CIFAR_STRIDES, 32)])
def test_mobilevit_weights(classes: int, strides: tuple[int, ...], side: int):
    by_hand = (
        conv(3, 3, 16)
        + norm(16)
        + inverted(16, 32)
        + inverted(32, 64)
        + inverted(64, 64)
        + inverted(64, 128)
        + mobilevit_block(128, 2)
        + inverted(128, 192)
        + mobilevit_block(192, 4)
        + inverted(192, 256)
        + mobilevit_block(256, 3)
        + dense(256, classes)
    )
    params = shapes_of(MobileViTv2(nn.silu, classes, strides=strides), 1, side, side, 3)["params"]
    assert count(params) == by_hand and (classes == 10 or by_hand == 1_370_593)


@pytest.mark.parametrize("classes", [10, 100])
def test_vit_weights(classes: int):
    attention = 4 * dense(192, 192)
    block = norm(192) + attention + norm(192) + dense(192, 768) + dense(768, 192)
    by_hand = dense(48, 192) + 64 * 192 + 6 * block + norm(192) + dense(192, classes)
    assert count(shapes_of(ViT(nn.gelu, classes))) == by_hand and (classes == 100 or by_hand == 2_693_194)


def sites(jaxpr: Any) -> np.ndarray:
    """How often asinh stands in a program, and how often it is evaluated."""
    found = np.zeros(2, int)
    for equation in jaxpr.eqns:
        found += equation.primitive.name == "asinh"
        inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
        if inner is not None:
            found += sites(getattr(inner, "jaxpr", inner)) * np.array([1, equation.params.get("length", 1)])
    return found


@pytest.mark.parametrize(
    ("model", "side", "written", "evaluated"),
    [
        (AllCNNC, 32, 9, 9),
        (ResNet, 32, 1 + 5 * 2, 55),
        pytest.param(MobileViTv2, 256, 1 + 2 * 6 + 2 * 3, 1 + 2 * 6 + 3 + (2 + 4 + 3), marks=slow),
        (ViT, 32, 1, 6),
    ],
)
def test_sites_of_the_activation(model: Any, side: int, written: int, evaluated: int):
    built, x = model(jax.lax.asinh), jnp.zeros((2, side, side, 3))
    program = jax.make_jaxpr(built.apply)(shapes_of(built, *x.shape), x)
    assert sites(program.jaxpr).tolist() == [written, evaluated]


@pytest.mark.parametrize("name", [pytest.param(name, marks=[slow] * (name == "mobilevit")) for name in SMALL])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shape_and_type_of_the_outputs(name: str, dtype: Any):
    build, shape, _ = SMALL[name]
    model = build(nn.relu)
    variables = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes_of(model, *shape))
    x = jax.ShapeDtypeStruct(shape, dtype)
    outputs = jax.eval_shape(model.apply, variables, x)
    assert outputs.shape == (4, 10) and outputs.dtype == dtype
    trained, changed = jax.eval_shape(
        lambda v, x: model.apply(v, x, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}), variables, x
    )
    assert trained.shape == (4, 10) and trained.dtype == dtype
    assert jax.tree.map(jnp.shape, changed) == jax.tree.map(
        jnp.shape, {k: v for k, v in variables.items() if k != "params"}
    )


@pytest.mark.parametrize(
    ("model", "classes"),
    [
        ("all-cnn-c", 10),
        ("all-cnn-c", 100),
        ("resnet56", 100),
        pytest.param("mobilevit", 10, marks=slow),
        pytest.param("mobilevit", 100, marks=slow),
        ("vit", 100),
    ],
)
def test_models_of_the_tasks(model: str, classes: int):
    built, x = MODELS[model].build(nn.relu, classes), jnp.zeros((3, 32, 32, 3))
    apply = MODELS[model].apply or (lambda model, variables, x: model.apply(variables, x))
    variables = shapes_of(built)
    assert jax.eval_shape(lambda v: apply(built, v, x), variables).shape == (3, classes)
    assert ("batch_stats" in variables) == (apply is in_batch_mode), "those with running statistics, and no others"


def test_shortcut_has_no_weights():
    block: Any = resnet.Block(lambda x: x, 8, train=False, stride=2)
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, None)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    y = jax.jit(lambda x: block.apply(variables, x, None)[0])(x)
    expected = np.zeros((2, 3, 3, 8), np.float32)
    expected[..., 2:6] = x[:, ::2, ::2]
    np.testing.assert_array_equal(y, expected)


def test_separable_attention_token_by_token():
    x = jax.random.normal(jax.random.key(1), (2, 3, 5, 4))
    model = mobilevit_v2.SeparableAttention()
    variables: Any = jax.jit(model.init)(jax.random.key(0), x)
    first, last = (jax.tree.map(np.asarray, variables["params"][f"Dense_{i}"]) for i in range(2))
    outputs, x = np.asarray(jax.jit(model.apply)(variables, x)), np.asarray(x)
    for n, p in np.ndindex(2, 3):
        projected = x[n, p] @ first["kernel"] + first["bias"]
        weights = np.exp(projected[:, 0]) / np.exp(projected[:, 0]).sum()
        context = sum(w * row for w, row in zip(weights, projected[:, 1:5], strict=True))
        for t in range(5):
            expected = (context * np.maximum(projected[t, 5:], 0)) @ last["kernel"] + last["bias"]
            np.testing.assert_allclose(outputs[n, p, t], expected, rtol=1e-4, atol=1e-5)


def test_patches_unfold_and_fold():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    tokens = mobilevit_v2._unfold(jnp.float32(x))
    assert tokens.shape == (2, 4, 6, 3)
    np.testing.assert_array_equal(tokens[:, 1, 0], x[:, 0, 1], "place 1 is the upper right of a patch")
    np.testing.assert_array_equal(tokens[:, 2, 5], x[:, 3, 4], "the last token of the lower left")
    np.testing.assert_array_equal(mobilevit_v2._fold(tokens, 4, 6), x)


def test_images_that_patches_do_not_cover():
    with pytest.raises(InputError, match="1×1 positions .* 2×2 patches .* multiples of 64") as caught:
        shapes_of(MobileViTv2(nn.silu))
    assert "\n" not in str(caught.value)


@slow
def test_repeated_blocks_equal_a_plain_loop(monkeypatch: pytest.MonkeyPatch):
    model = ResNet(jnp.tanh, blocks=3)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables: Any = jax.jit(model.init)(jax.random.key(0), x)
    scanned = jax.jit(model.apply)(variables, x)

    class Loop(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = jnp.tanh(resnet._norm(False)(resnet._conv(16)(x)))
            for width in (16, 32, 64):
                for number in range(3):
                    x, _ = resnet.Block(jnp.tanh, width, False, 2 if width > 16 and not number else 1)(x, None)
            return nn.Dense(10)(x.mean(axis=(1, 2)))

    plain = {}
    for collection, tree in variables.items():
        stages = [tree[f"ScanBlock_{i}"] for i in range(3)]
        blocks = [jax.tree.map(lambda leaf, i=i: leaf[i], stages[0]) for i in range(3)]
        for number, stage in enumerate(stages[1:]):
            blocks += [tree[f"Block_{number}"], *(jax.tree.map(lambda leaf, i=i: leaf[i], stage) for i in range(2))]
        others = {key: value for key, value in tree.items() if "Block" not in key}
        plain[collection] = others | {f"Block_{i}": block for i, block in enumerate(blocks)}
    np.testing.assert_allclose(jax.jit(Loop().apply)(plain, x), scanned, rtol=1e-4, atol=1e-5)


def loss_of(name: str, act: Any, variables: Any, params: Any) -> jax.Array:
    build, shape, apply = SMALL[name]
    model, x, changed = build(act), jax.random.normal(jax.random.key(1), shape), {**variables, "params": params}
    outputs = apply(model, changed, x) if apply else model.apply(changed, x)
    return losses.softmax_cross_entropy(outputs, jnp.arange(4)).mean()


@slow
@names
def test_one_program_serves_the_functions_of_a_shape(name: str):
    # As text before it is compiled, which would take a minute for each model and show no more.
    build, shape, _ = SMALL[name]
    variables = shapes_of(build(nn.relu), *shape)
    gradient = jax.jit(jax.grad(lambda params, act, others: loss_of(name, act, others, params)))
    others = {key: value for key, value in variables.items() if key != "params"}
    programs = {
        function: gradient.lower(variables["params"], activation(function), others).as_text()
        for function in ("tanh(x)", "swish(x)", "tanh(swish(x))")
    }
    assert programs["tanh(x)"] == programs["swish(x)"] != programs["tanh(swish(x))"]


# Not MobileViTv2, whose spectra below are finite; its gradient takes half a minute to compile.
@slow
@pytest.mark.parametrize("name", sorted(set(SMALL) - {"mobilevit"}))
def test_gradients_are_finite(name: str):
    build, shape, _ = SMALL[name]
    variables = jax.jit(build(nn.relu).init)(jax.random.key(0), jnp.zeros(shape))
    act = activation("swish(x)")
    loss, gradients = jax.jit(jax.value_and_grad(lambda params: loss_of(name, act, variables, params)))(
        variables["params"]
    )
    assert 0.5 < loss < 20
    sizes = np.array([float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients)])
    assert np.isfinite(sizes).all() and np.mean(sizes > 0) > 0.9


# Keys and weights of the layers that are Kronecker; normalisations and positions are not.
COVERED: dict[str, dict[str, int]] = {
    "all-cnn-c": {
        f"Conv_{i}": n for i, n in enumerate([2688, 83040, 83040, 166080, 331968, 331968, 331968, 37056, 1930])
    },
    "resnet": {
        "Conv_0": 432,
        **{f"ScanBlock_0/Conv_{i}/{slice_}": 2304 for i in range(2) for slice_ in range(2)},
        **{f"ScanBlock_1/Conv_{i}/0": 9216 for i in range(2)},
        **{f"ScanBlock_2/Conv_{i}/0": 36864 for i in range(2)},
        "Block_0/Conv_0": 4608,
        "Block_0/Conv_1": 9216,
        "Block_1/Conv_0": 18432,
        "Block_1/Conv_1": 36864,
        "Dense_0": 650,
    },
    "vit": {
        "Conv_0": 588,
        **{f"ScanBlock_0/Dense_0/{slice_}": 260 for slice_ in range(3)},
        **{f"ScanBlock_0/Dense_1/{slice_}": 252 for slice_ in range(3)},
        **{
            f"ScanBlock_0/MultiHeadDotProductAttention_0/{part}/{slice_}": 156
            for part in ("query", "key", "value", "out")
            for slice_ in range(3)
        },
        "Dense_0": 130,
    },
}


@slow
@names
def test_fisher_spectra(name: str):
    build, shape, apply = SMALL[name]
    x, y = jax.random.normal(jax.random.key(1), shape), jnp.arange(4)
    model = build(activation("swish(x)"))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    settings = {} if apply is None else {"apply": apply}
    coverage = fisher.coverage(model, variables, x, **settings)
    left_out = {part.path.split("/")[-1].split("_")[0] for part in coverage.left_out}
    positions = {""} if name == "vit" else set()  # a parameter of the model itself
    assert left_out <= {"BatchNorm", "GroupNorm", "LayerNorm"} | positions and not coverage.unreached
    if name in COVERED:
        assert coverage.weights == COVERED[name]
    total = sum(part.weights for part in coverage.left_out) + sum(coverage.weights.values())
    assert total == count(variables["params"])
    spectra = fisher.eigenvalues(model, variables, x, y, loss=losses.softmax_cross_entropy, **settings)
    assert {path: len(values) for path, values in spectra.items()} == coverage.weights
    for path, values in spectra.items():
        assert np.isfinite(values).all() and values[-1] > 0, path
        assert values[0] >= -1e-4 * values[-1], path
