"""Einsum layers, whose equation says what is a feature, a group or a position: against loops over all indices."""

from __future__ import annotations

from functools import cache

import fisher_oracle as oracle
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fisher_oracle import assert_same
from flax import nnx

from aqx import fisher, losses

N = 5
pytestmark = pytest.mark.usefixtures("float64", "quick_to_compile")
F64 = {"param_dtype": jnp.float64}
EINSUM = {"kernel_init": nn.initializers.normal(), **F64}  # the default takes no kernel of one axis

# name: (shape of one input, equation, shape of the kernel, shape of the bias)
EQUATIONS = {
    "dense": ((4,), "na,ab->nb", (4, 3), (3,)),
    "heads": ((3, 4), "nta, ahb -> nthb", (4, 2, 2), (2, 2)),
    "no_bias": ((3, 4), "nta,ahb->nthb", (4, 2, 2), None),
    "out_projection": ((3, 2, 2), "nthb,hba->nta", (2, 2, 3), (3,)),
    "kernel_in_another_order": ((3, 2, 4), "ntab,bca->ntc", (4, 3, 2), (3,)),
    "groups": ((3, 2, 4), "ntga,gab->ntgb", (2, 4, 3), (2, 3)),
    "groups_in_another_order": ((4, 2, 3), "nagt,bga->ntgb", (3, 2, 4), (2, 3)),
    "two_axes_of_groups": ((2, 3, 4), "nfga,abgf->nbfg", (4, 2, 3, 2), (2, 2, 3)),
    "positions_in_another_order": ((2, 3, 4), "nsta,ab->tbns", (4, 3), (3,)),
    "ellipsis": ((2, 3, 4), "...a,ab->...b", (4, 3), (3,)),
    "ellipsis_in_the_kernel": ((2, 4), "...a,...ab->...b", (2, 4, 3), (2, 3)),
    "groups_of_one_input": ((3,), "nt,tb->ntb", (3, 4), (3, 4)),
    "one_input": ((3,), "nt,ab->natb", (2, 2), (2, 2)),
    "one_output": ((3, 4), "nta,a->nt", (4,), ()),
    "one_weight_per_group": ((3,), "nt,t->nt", (3,), None),
}
# For what the flavours share, and the options of all layers.
SOME = ("heads", "groups_in_another_order", "positions_in_another_order", "one_output")


class Many(nn.Module):
    """Every equation once, side by side in one program, as compiling is what takes the time."""

    names: tuple[str, ...]
    at_call: bool = False

    @nn.compact
    def __call__(self, xs):
        parts = []
        for name in self.names:
            _, equation, kernel, bias = EQUATIONS[name]
            given = (None, equation) if self.at_call else (equation, None)
            layer = nn.Einsum(kernel, given[0], use_bias=bias is not None, name=name, **EINSUM)
            h = layer(jnp.sin(xs[name]) + xs[name], given[1])
            parts.append(jnp.tanh(examples_first(equation, h)))
        return nn.Dense(3, name="head", **F64)(jnp.concatenate(parts, axis=1))


class ManyNnx(nnx.Module):
    """The same in NNX."""

    def __init__(self, names, params):
        self.names = nnx.static(names)
        for name in names:
            _, equation, kernel, bias = EQUATIONS[name]
            setattr(self, name, nnx.Einsum(equation, kernel, bias, rngs=nnx.Rngs(0), **EINSUM))
        self.head = nnx.Linear(params["head"]["kernel"].shape[0], 3, rngs=nnx.Rngs(0), **F64)
        for path, values in params.items():
            for part, value in values.items():
                getattr(getattr(self, path), part)[...] = value

    def __call__(self, xs):
        parts = []
        for name in self.names:
            h = getattr(self, name)(jnp.sin(xs[name]) + xs[name])
            parts.append(jnp.tanh(examples_first(EQUATIONS[name][1], h)))
        return self.head(jnp.concatenate(parts, axis=1))


def examples_first(equation, h):
    """[N, everything else]."""
    h = jnp.moveaxis(h, max(equation.split("->")[1].strip().find("n"), 0), 0)
    return h.reshape(len(h), -1)


@cache
def subject(names=tuple(EQUATIONS)):
    """(model, variables, inputs by name, y)."""
    rng = np.random.default_rng(3)
    xs = {name: jnp.asarray(rng.normal(size=(N, *EQUATIONS[name][0]))) for name in names}
    model = Many(names)
    shapes = jax.eval_shape(model.init, jax.random.key(1), xs)
    variables = jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape)), shapes)
    return model, variables, xs, jnp.arange(N) % 3


@cache
def expected(sharing="expand", names=tuple(EQUATIONS)):
    """Spectra of the oracle."""
    model, variables, xs, y = subject(names)
    forward = oracle.linen_forward(model, variables)
    found = oracle.pairs(forward, xs, y, losses.softmax_cross_entropy)
    return {path: oracle.spectrum(module, uses, sharing) for path, (module, uses) in found.items()}


@cache
def computed(compute, flavour="linen", sharing="expand", names=tuple(EQUATIONS), at_call=False):
    """Spectra of `compute`."""
    model, variables, xs, y = subject(names)
    model = ManyNnx(names, variables["params"]) if flavour == "nnx" else model.clone(at_call=at_call)
    variables = None if flavour == "nnx" else variables
    return compute(model, variables, xs, y, loss=losses.softmax_cross_entropy, sharing=sharing)


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUATIONS)
def test_every_equation_equals_loops(name):
    assert_same(computed(fisher.eigenvalues)[name], expected()[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("compute", [fisher.eigenvalues, fisher.reference])
def test_reduce_sums_the_positions_of_an_example(compute, name):
    assert_same(computed(compute, sharing="reduce", names=SOME)[name], expected("reduce", SOME)[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_reference_equals_loops(name):
    assert_same(computed(fisher.reference, names=SOME)[name], expected(names=SOME)[name])


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("flavour", ["linen", pytest.param("nnx", marks=pytest.mark.slow)])
def test_some_equations_equal_loops(flavour, name):
    assert_same(computed(fisher.eigenvalues, flavour, names=SOME)[name], expected(names=SOME)[name])


def test_every_weight_is_covered():
    model, variables, xs, _ = subject()
    assert fisher.coverage(model, variables, xs).share == 1


def test_an_equation_given_at_the_call():
    late = computed(fisher.eigenvalues, names=SOME, at_call=True)
    for name in SOME:
        assert_same(late[name], expected(names=SOME)[name])


class Overriding(nnx.Module):
    """In NNX the call's equation goes before the layer's own."""

    def __init__(self, rngs):
        self.layer = nnx.Einsum("na,ab->nb", (3, 3), rngs=rngs, **F64)

    def __call__(self, x):
        return self.layer(x, einsum_str="na,ba->nb")


def test_an_equation_that_the_call_overrides():
    x, y = jnp.eye(3) * 2.0, jnp.arange(3)
    model = Overriding(nnx.Rngs(0))
    transposed = nn.Dense(3, use_bias=False)
    variables = {"params": {"kernel": model.layer.kernel[...].T}}
    got = fisher.eigenvalues(model, None, x, y, loss=losses.softmax_cross_entropy)["layer"]
    expected = fisher.eigenvalues(transposed, variables, x, y, loss=losses.softmax_cross_entropy)[""]
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize(
    ("shape", "equation", "kernel", "reason"),
    [
        ((4, 2), "nab,ac->nc", (4, 3), "sums an index of one operand"),
        ((4,), "na,abc->nb", (4, 3, 2), "sums an index of one operand"),
        ((4, 2), "...a,ab->b", (2, 3), "sums an index of one operand"),
        ((4, 4), "naa,ab->nb", (4, 3), "diagonal"),
        ((4,), "na,aa->na", (4, 4), "diagonal"),
        ((1,), "na,ab->nb", (4, 3), "size 1"),
    ],
)
def test_an_einsum_that_is_not_kronecker_is_left_out(shape, equation, kernel, reason):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.Einsum(kernel, equation, use_bias=False, name="odd")(x)
            return nn.Dense(3, name="head")(h.reshape(N if h.size % N == 0 else 1, -1))

    x = jnp.ones((N, *shape))
    variables = jax.jit(Model().init)(jax.random.key(0), x)
    coverage = fisher.coverage(Model(), variables, x)
    reasons = {part.path: part.reason for part in coverage.left_out}
    assert reason in reasons["odd"] and "odd" not in coverage.weights


def test_an_einsum_with_two_equations_is_left_out():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Einsum((4, 4), use_bias=False, name="layer")
            return layer(layer(x, "na,ab->nb"), "na,ba->nb")  # the second contracts the other axis of the kernel

    x = jnp.ones((N, 4))
    coverage = fisher.coverage(Model(), Model().init(jax.random.key(0), x), x)
    assert coverage.share == 0 and "two different ways" in coverage.left_out[0].reason
