"""The brute-force oracle of the Fisher tests: closures that perturb layer outputs, NumPy loops for patches, float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aqx import losses

DENSE = (nn.Dense, nnx.Linear)
GENERAL = (nn.DenseGeneral, nnx.LinearGeneral)
CONV = (nn.Conv, nnx.Conv)
TRANSPOSE = (nn.ConvTranspose, nnx.ConvTranspose)
EMBED = (nn.Embed, nnx.Embed)
EINSUM = (nn.Einsum, nnx.Einsum)
LEAVES = DENSE + GENERAL + CONV + TRANSPOSE + EMBED + EINSUM
# Ellipses spelled out by hand for the inputs that the tests give.
SPELLED = {"...a,ab->...b": "nsta,ab->nstb", "...a,...ab->...b": "nga,gab->ngb", "...a,...b->...ab": "nsa,b->nsab"}


def linen_forward(model: nn.Module, variables, apply=None) -> Callable:
    """forward(x, hook) -> outputs, with hook(path, module, a, out) -> out at every layer."""

    def forward(x, hook):
        def intercept(call, args, kwargs, context):
            out = call(*args, **kwargs)
            if isinstance(context.module, LEAVES) and context.method_name == "__call__":
                return hook("/".join(context.module.scope.path), context.module, args[0], out)
            return out

        with nn.intercept_methods(intercept):
            return apply(model, variables, x) if apply else model.apply(variables, x)

    return forward


def nnx_forward(model: nnx.Module, apply=None) -> Callable:
    """The same for an NNX model: every layer of a copy gets a class of its own."""

    def forward(x, hook):
        copy = nnx.clone(model)
        for path, module in nnx.iter_modules(copy):
            if isinstance(module, LEAVES):
                name, kind = "/".join(map(str, path)), type(module)

                def call(self, a, *, kind=kind, name=name, **kwargs):
                    return hook(name, self, a, kind.__call__(self, a, **kwargs))

                module.__class__ = type(type(module).__name__, (type(module),), {"__call__": call})
        return apply(copy, None, x) if apply else copy(x)

    return forward


def pairs(forward: Callable, x, y, loss: Callable) -> dict[str, tuple[object, list]]:
    """By path: the module, and for each of its uses the inputs [N, …] and per-example output gradients [N, …]."""
    modules, shapes = {}, {}

    def look(path, module, a, out):
        modules[path] = module
        shapes.setdefault(path, []).append(out)
        return out

    jax.eval_shape(lambda x: forward(x, look), jax.tree.map(lambda leaf: leaf[:1], x))
    zeros = {path: [jnp.zeros(o.shape, o.dtype) for o in outs] for path, outs in shapes.items()}

    def one_loss(shifts, x, y):
        inputs = {path: [] for path in shifts}

        def shift(path, module, a, out):
            inputs[path].append(a)
            return out + shifts[path][len(inputs[path]) - 1]

        x, y = jax.tree.map(lambda leaf: leaf[None], (x, y))
        (value,) = loss(forward(x, shift), y)
        return value, inputs

    gradients, inputs = jax.jit(jax.vmap(jax.grad(one_loss, has_aux=True), (None, 0, 0)))(zeros, x, y)
    return {p: (modules[p], [*zip(map(one, inputs[p]), map(one, gradients[p]), strict=True)]) for p in zeros}


def batch(examples: int, *shape: int):
    """Inputs [N, …] and labels [N] of three classes."""
    return jax.random.normal(jax.random.key(3), (examples, *shape), jnp.float64), jnp.arange(examples) % 3


def assert_same(got, expected: np.ndarray) -> None:
    """1e-9 relative for eigenvalues above 1e-10 of the largest, the others below it too."""
    got = np.asarray(got)
    assert got.shape == expected.shape and got.dtype == np.float64
    assert np.all(np.diff(got) >= 0)
    large = expected > 1e-10 * expected.max()
    np.testing.assert_allclose(got[large], expected[large], rtol=1e-9)
    assert np.abs(got[~large]).max(initial=0) <= 1.1e-10 * expected.max()


def assert_all_same(
    got, forward: Callable, x, y, loss=losses.softmax_cross_entropy, sharing="expand", key=lambda path: path
) -> None:
    """Every layer the oracle meets has its eigenvalues, under `key(path)`, and no other key is there."""
    found = pairs(forward, x, y, loss)
    assert set(got) == {key(path) for path in found}
    for path, (module, uses) in found.items():
        assert_same(got[key(path)], spectrum(module, uses, sharing))


def one(array) -> np.ndarray:
    """[N, 1, …] -> [N, …], NumPy: each example went through the model as a batch of one."""
    array = np.asarray(array)
    return array[:, 0] if array.ndim > 1 and array.shape[1] == 1 else array


def factors(module, uses: list, sharing: str = "expand") -> list[tuple[np.ndarray, np.ndarray]]:
    """One (A, G) per group of a layer, from all its uses."""
    sums, count = None, 0
    for a, g in uses:
        rows, grads = rows_of(module, a, g)  # [N, T, B, d], [N, T, B, p]
        if module_bias(module):
            rows = np.concatenate([rows, np.ones((*rows.shape[:-1], 1))], axis=-1)
        if sharing == "reduce":
            rows, grads = rows.mean(1, keepdims=True), grads.sum(1, keepdims=True)
        count += grads.shape[0] * grads.shape[1]
        new = [
            (
                sum(np.outer(r, r) for r in rows[:, :, b].reshape(-1, rows.shape[-1])),
                sum(np.outer(r, r) for r in grads[:, :, b].reshape(-1, grads.shape[-1])),
            )
            for b in range(rows.shape[2])
        ]
        sums = new if sums is None else [(A + C, G + D) for (A, G), (C, D) in zip(sums, new, strict=True)]
    return [(A / len(uses[0][0]), G / count) for A, G in sums]


def spectrum(module, uses: list, sharing: str = "expand") -> np.ndarray:
    """All eigenvalues of the layer's block, ascending, from the full Kronecker product."""
    return np.sort(np.concatenate([np.linalg.eigvalsh(np.kron(A, G)) for A, G in factors(module, uses, sharing)]))


def module_bias(module) -> bool:
    return bool(module.use_bias) if hasattr(module, "use_bias") else getattr(module, "bias", None) is not None


def rows_of(module, a: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Input rows [N, T, B, d] and gradient rows [N, T, B, p]."""
    n = len(a)
    if isinstance(module, EINSUM):
        equation = SPELLED.get(module.einsum_str, module.einsum_str).replace(" ", "")
        x, kernel, out = equation.replace("->", ",").split(",")
        return einsum_rows(x, kernel + out, kernel, a), einsum_rows(out, kernel + x, kernel, g)
    if isinstance(module, DENSE):
        return a.reshape(n, -1, 1, a.shape[-1]), g.reshape(n, -1, 1, g.shape[-1])
    if isinstance(module, EMBED):
        return np.eye(module.num_embeddings)[a.reshape(n, -1)][:, :, None], g.reshape(n, -1, 1, g.shape[-1])
    if isinstance(module, GENERAL):
        axis = [module.axis] if isinstance(module.axis, int) else list(module.axis)
        # Examples lost their batch axis of one and got the one of vmap in its place, so axes count from the same end.
        axis = [i % a.ndim for i in axis]
        a = np.moveaxis(a, axis, range(a.ndim - len(axis), a.ndim))
        positions = a.shape[1 : a.ndim - len(axis)]
        t = int(np.prod(positions))
        return a.reshape(n, t, 1, -1), g.reshape(n, t, 1, -1)
    patches = conv_patches(module, a)  # [N, T, positions of kernel, channels]
    groups = getattr(module, "feature_group_count", 1)
    split = patches.reshape(*patches.shape[:3], groups, -1)
    rows = np.moveaxis(split, 3, 2).reshape(n, patches.shape[1], groups, -1)
    return rows, g.reshape(n, -1, groups, g.shape[-1] // groups)


def einsum_rows(own: str, others: str, kernel: str, values: np.ndarray) -> np.ndarray:
    """[N, T, B, features] by loops over every index: features are in one operand and the kernel, groups in all."""
    own = own.replace("n", "") if values.ndim == len(own) else own  # `one` took away a leading axis of examples
    assert values.ndim == 1 + len(own)
    rows: list[dict] = []
    for example in values:
        rows.append({})
        for where in np.ndindex(example.shape):
            at = dict(zip(own, where, strict=True))
            group = tuple(at[i] for i in kernel if i in own and others.count(i) == 2)
            feature = tuple(at[i] for i in kernel if i in own and others.count(i) == 1)
            position = tuple(at[i] for i in sorted(own) if i not in kernel)
            rows[-1].setdefault(position, {}).setdefault(group, {})[feature] = example[where]

    def listed(tree):
        return [listed(tree[key]) for key in sorted(tree)] if isinstance(tree, dict) else tree

    return np.array([listed(tree) for tree in rows])


def conv_patches(module, a: np.ndarray) -> np.ndarray:
    """Patches by plain loops: [N, T, kernel positions, channels]."""
    size = (module.kernel_size,) if isinstance(module.kernel_size, int) else tuple(module.kernel_size)
    rank = len(size)
    each = lambda v: (1,) * rank if v is None else (v,) * rank if isinstance(v, int) else tuple(v)  # noqa: E731
    strides, step = each(module.strides), each(module.kernel_dilation)
    extent = [(k - 1) * d + 1 for k, d in zip(size, step, strict=True)]
    lead = a.shape[: a.ndim - rank - 1]
    a = a.reshape(-1, *a.shape[len(lead) :])
    spread = each(getattr(module, "input_dilation", 1))
    if isinstance(module, TRANSPOSE):
        spread, strides = strides, (1,) * rank
    pads = []
    for i in range(rank):
        length, padding = a.shape[1 + i], module.padding
        if isinstance(padding, int):
            pads.append((padding, padding))
        elif not isinstance(padding, str):
            pads.append((padding[i],) * 2 if isinstance(padding[i], int) else tuple(padding[i]))
        elif isinstance(module, TRANSPOSE):
            total = extent[i] + spread[i] - 2 + (max(extent[i] - spread[i], 0) if padding == "VALID" else 0)
            first = extent[i] - 1 if padding == "VALID" or spread[i] > extent[i] - 1 else -(-total // 2)
            pads.append((first, total - first))
        elif padding == "VALID":
            pads.append((0, 0))
        elif padding == "SAME":
            total = max((-(-length // strides[i]) - 1) * strides[i] + extent[i] - length, 0)
            pads.append((total // 2, total - total // 2))
        elif padding == "CAUSAL":
            pads.append((extent[i] - 1, 0))
        else:
            pads.append(((extent[i] - 1) // 2, extent[i] // 2))
    if module.padding in ("CIRCULAR", "REFLECT"):
        a = np.pad(a, [(0, 0), *pads, (0, 0)], mode="wrap" if module.padding == "CIRCULAR" else "reflect")
        pads = [(0, 0)] * rank
    wide = np.zeros((len(a), *((n - 1) * d + 1 for n, d in zip(a.shape[1:-1], spread, strict=True)), a.shape[-1]))
    wide[(slice(None), *(slice(None, None, d) for d in spread))] = a
    padded = np.pad(wide, [(0, 0), *pads, (0, 0)])
    counts = [(n - e) // s + 1 for n, e, s in zip(padded.shape[1:-1], extent, strides, strict=True)]
    patches = np.zeros((len(a), *counts, int(np.prod(size)), a.shape[-1]))
    for where in itertools.product(*map(range, counts)):
        for number, offset in enumerate(itertools.product(*map(range, size))):
            at = tuple(w * s + o * d for w, s, o, d in zip(where, strides, offset, step, strict=True))
            patches[(slice(None), *where, number)] = padded[(slice(None), *at)]
    return patches.reshape(lead[0], -1, *patches.shape[-2:])
