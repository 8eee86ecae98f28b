"""The slow plain way to the Fisher eigenvalues: per-example gradients, patches by loops, NumPy; a check."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from aqx.errors import AqxError, InputError, UnsupportedError, one_line
from aqx.fisher.cross import own_settings
from aqx.fisher.einsum import EinsumRows
from aqx.fisher.factors import looking_at
from aqx.fisher.layers import Apply, Layer, insert_axes
from aqx.fisher.outputs import Loss, output_gradients
from aqx.fisher.probe import Probe, probe_model
from aqx.fisher.rows import ConvRows, EmbedRows, LinearRows, Rows


@own_settings()
def reference(
    model: Any,
    variables: Mapping[str, Any] | None,
    x: Any,
    y: Any,
    *,
    loss: Loss,
    fisher: str = "empirical",
    sharing: str = "expand",
    apply: Apply | None = None,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, " weights"]]:
    """The same eigenvalues as `aqx.fisher.eigenvalues`, computed the slow plain way, to compare with.

    Per-example gradients with respect to every layer's output by `jax.vmap(jax.grad(…))`, rows by loops over the
    positions, factors and `numpy.linalg.eigvalsh` in float64. A model whose examples depend on one another (batch
    normalisation by the batch) is differentiated as one batch instead, which is the definition there.

    Args:
        model: as in `aqx.fisher.eigenvalues`.
        variables: as in `aqx.fisher.eigenvalues`.
        x: as in `aqx.fisher.eigenvalues`.
        y: as in `aqx.fisher.eigenvalues`.
        loss: as in `aqx.fisher.eigenvalues`.
        fisher: as in `aqx.fisher.eigenvalues`.
        sharing: as in `aqx.fisher.eigenvalues`.
        apply: as in `aqx.fisher.eigenvalues`.
        seed: as in `aqx.fisher.eigenvalues`.

    Returns:
        Eigenvalues per layer key, ascending, float64.

    Raises:
        UnsupportedError: a layer is used several times inside a transform that has no end known beforehand, as a
            while loop, or under `vmap`, where its uses cannot be told apart; and as `eigenvalues`.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
        >>> from aqx import fisher, losses
        >>> model = nn.Sequential([nn.Dense(4), nn.tanh, nn.Dense(2)])
        >>> x, y = jax.random.normal(jax.random.key(0), (8, 3)), jnp.arange(8) % 2
        >>> v = model.init(jax.random.key(1), x)
        >>> slow = fisher.reference(model, v, x, y, loss=losses.softmax_cross_entropy)
        >>> fast = fisher.eigenvalues(model, v, x, y, loss=losses.softmax_cross_entropy)
        >>> all(np.allclose(fast[key], slow[key], atol=1e-6) for key in slow)
        True
    """
    x, y = jax.tree.map(jnp.asarray, (x, y))
    probe = probe_model(model, variables, x, y, loss=loss, fisher=fisher, sharing=sharing, apply=apply)
    try:
        return _spectra(probe, model, variables, x, y, seed, unrolled=False)
    except (InputError, np.linalg.LinAlgError):
        raise
    except Exception:  # whatever JAX raises where a transform hides a use of a layer
        pass
    try:
        # Without jit a scan is a loop in Python, so that each of its steps is a use of its own; it takes its time.
        with jax.disable_jit():
            return _spectra(probe, model, variables, x, y, seed, unrolled=True)
    except (AqxError, np.linalg.LinAlgError):
        raise
    except Exception as error:
        raise UnsupportedError(
            f"reference cannot follow this model ({one_line(error)}); use aqx.fisher.eigenvalues"
        ) from error


def _spectra(
    probe: Probe, model: Any, variables: Any, x: Any, y: Any, seed: int, unrolled: bool
) -> dict[str, Float[np.ndarray, " weights"]]:
    fisher, sharing = probe.fisher, probe.settings.sharing

    def forward(x: Any) -> Any:
        # Through `run`, which works on a clone: an NNX model may write to its own variables.
        return probe.flavour.run(model, variables, {}, x, probe.apply, _Attach())

    @jax.jit  # one program, as a program for each operation takes the longer to compile
    def outputs_and_gradients(x: Any, y: Any) -> tuple[Any, Any]:
        outputs = forward(x)
        return outputs, output_gradients(fisher, probe.loss, outputs, y, probe.examples, jax.random.key(seed))[1]

    outputs, gradients = outputs_and_gradients(x, y)

    def witness(x: Any, gradient: Any) -> dict[str, dict[str, Array]]:
        zeros = _zeros(probe, model, variables, x, unrolled)
        attach = _Attach()
        _, pull_back = jax.vjp(lambda d: probe.flavour.run(model, variables, d, x, probe.apply, attach), zeros)
        return pull_back(gradient)[0]

    def batched(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[:, None], tree)

    try:
        alone = jax.jit(jax.vmap(forward))(batched(x))
        close = jax.tree.map(
            lambda a, b: np.allclose(
                np.asarray(a, np.float64)[:, 0], np.asarray(b, np.float64), rtol=1e-3, atol=1e-5, equal_nan=True
            ),
            *jax.device_get((alone, outputs)),
        )
    except UnsupportedError:
        raise
    except Exception:  # whatever Flax or the model raises: it takes the batch as a whole, as a graph does
        close = False
    witness_alone, witness_together = jax.jit(jax.vmap(witness)), jax.jit(witness)
    seen = []
    for i in range(jax.tree.leaves(gradients)[0].shape[0]):
        gradient = jax.tree.map(operator.itemgetter(i), gradients)
        if jax.tree.all(close):
            seen.append(witness_alone(batched(x), batched(gradient)))
        else:
            seen.append(jax.tree.map(lambda leaf: leaf[None], witness_together(x, gradient)))
    spectra: dict[str, np.ndarray] = {}
    for layer in probe.layers:
        uses = [jax.device_get(witnessed[layer.path]) for witnessed in seen]
        for key, where in zip(layer.keys, itertools.product(*map(range, layer.stack)), strict=True):
            blocks = _blocks(layer, where, uses, sharing, probe.examples)
            values = [np.outer(np.linalg.eigvalsh(A), np.linalg.eigvalsh(G)).ravel() for A, G in blocks]
            spectra[key] = np.sort(np.concatenate(values))
    return spectra


@jax.custom_vjp
def _witness(a: Array, out: Array, for_a: Array, for_g: Array, calls: Array) -> Array:
    """Identity on `out`; the cotangents of the last three are the input, the output's gradient, and 1."""
    return out


def _witness_forward(a: Array, out: Array, for_a: Array, for_g: Array, calls: Array) -> tuple[Array, tuple[Array, ...]]:
    return out, (a, for_a, calls)


def _witness_backward(kept: tuple[Array, ...], g: Array) -> tuple[Any, ...]:
    a, for_a, calls = kept
    return None, g, a.astype(for_a.dtype), g, looking_at(g, jnp.ones_like(calls))


_witness.defvjp(_witness_forward, _witness_backward)


class _Attach:
    """Gives each use of a layer dummies of its own, in the order in which the uses are traced."""

    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[Any, Any]]] = {}

    def __call__(self, path: str, rows: Rows, a: Array, out: Array, dummies: Mapping[str, Array]) -> Array:
        uses = self.shapes.setdefault(path, [])
        use = len(uses)
        uses.append((jax.ShapeDtypeStruct(a.shape, a.dtype), jax.ShapeDtypeStruct(out.shape, out.dtype)))
        if "look" in dummies:
            return out
        if f"a{use}" not in dummies:
            raise UnsupportedError(f"reference cannot tell the uses of {path} apart; use aqx.fisher.eigenvalues")
        return _witness(a, out, *(dummies[f"{name}{use}"] for name in "agn"))


def _zeros(probe: Probe, model: Any, variables: Any, x: Any, unrolled: bool) -> dict[str, dict[str, Array]]:
    """Dummies for the input, the output's gradient and a count of each use of each layer, in the stored layout."""
    look = _Attach()

    def stored(layer: Layer, shape: tuple[int, ...], dtype: Any) -> Array:
        return jnp.zeros(insert_axes(shape, layer.stack, layer.axes), dtype)

    looks = {layer.path: {"look": stored(layer, (1, 1, 1), jnp.float32)} for layer in probe.layers}
    # Without jit, as a cached trace would show a layer once and not at its other uses; scans are unrolled then.
    with jax.disable_jit():
        jax.eval_shape(lambda d: probe.flavour.run(model, variables, d, x, probe.apply, look), looks)
    zeros: dict[str, dict[str, Array]] = {}
    for layer in probe.layers:
        calls = look.shapes[layer.path]
        # A scanned body is traced once or twice, not once per step.
        most = len(calls) if unrolled else min(len(calls), -(-len(calls) // math.prod(layer.stack)) + 1)
        for use, (a, out) in enumerate(calls[:most]):
            wide = jnp.float32 if jnp.issubdtype(a.dtype, jnp.integer) else a.dtype
            zeros.setdefault(layer.path, {}).update(
                {
                    f"a{use}": stored(layer, a.shape, wide),
                    f"g{use}": stored(layer, out.shape, out.dtype),
                    f"n{use}": stored(layer, (1, 1, 1), jnp.float32),
                }
            )
    return zeros


def _blocks(
    layer: Layer, where: tuple[int, ...], seen: list[dict[str, np.ndarray]], sharing: str, examples: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(A, G) per group of one slice of a layer."""
    rows = layer.tap.rows
    groups, d, p = rows.dimensions
    A, G, count = np.zeros((groups, d + rows.bias, d + rows.bias)), np.zeros((groups, p, p)), 0
    for number, witnessed in enumerate(seen):
        for use in range(len(witnessed) // 3):
            a, g, calls = (_slice(witnessed[f"{name}{use}"], layer, where) for name in "agn")
            if calls.max() > 1:
                raise UnsupportedError(
                    f"reference cannot tell the uses of {layer.path} apart; use aqx.fisher.eigenvalues"
                )
            if calls.max() == 0:
                continue  # traced, but not part of the program
            a, g = a.astype(np.float64), g.astype(np.float64)
            if isinstance(rows, EinsumRows):
                inputs, gradients = _einsum(rows, rows.x, rows.inside, a), _einsum(rows, rows.out, rows.outside, g)
            else:
                # Where examples are taken one by one, axis 0 counts them and the model's own batch has length 1.
                a, g = (part.reshape(-1, *part.shape[2:]) for part in (a, g))
                inputs, gradients = _input_rows(rows, a), _gradient_rows(rows, g)
            if rows.bias:
                inputs = np.concatenate([inputs, np.ones((*inputs.shape[:-1], 1))], axis=-1)
            if sharing == "reduce":
                inputs, gradients = inputs.mean(1, keepdims=True), gradients.sum(1, keepdims=True)
            for group in range(groups):
                for t in range(inputs.shape[1]):
                    if number == 0:
                        A[group] += inputs[:, t, group].T @ inputs[:, t, group]
                for t in range(gradients.shape[1]):
                    G[group] += gradients[:, t, group].T @ gradients[:, t, group]
            if number == 0:
                count += gradients.shape[0] * gradients.shape[1]
    return [(A[group] / examples, G[group] / max(count, 1)) for group in range(groups)]


def _slice(stored: np.ndarray, layer: Layer, where: tuple[int, ...]) -> np.ndarray:
    for index, axis in zip(where, layer.axes, strict=True):
        stored = np.take(stored, index, axis=1 + axis % (stored.ndim - 1))
    return stored


def _input_rows(rows: Rows, a: np.ndarray) -> np.ndarray:
    """[N, T, B, d] by plain loops."""
    groups, d, _ = rows.dimensions
    if isinstance(rows, EmbedRows):
        return np.eye(d)[a.astype(int).reshape(len(a), -1)][:, :, None]
    if isinstance(rows, ConvRows):
        patches = _patches(rows, a)  # [N, T, kernel positions, channels]
        width = patches.shape[-1] // groups
        parts = [patches[..., i * width : (i + 1) * width].reshape(*patches.shape[:2], d) for i in range(groups)]
        return np.stack(parts, axis=2)
    assert isinstance(rows, LinearRows)
    batch = [i % a.ndim for i in rows.batch_dims]
    axis = [i % a.ndim for i in rows.axis]
    kept = [i for i in range(a.ndim) if i not in batch + axis]
    ordered = a.transpose(kept + batch + axis)
    return ordered.reshape(a.shape[kept[0]] if kept else 1, -1, groups, d)


def _einsum(rows: EinsumRows, indices: str, features: str, stored: np.ndarray) -> np.ndarray:
    """[N, T, B, features] from [1 or N, *indices]."""
    ordered = np.einsum(f"...{indices}->...{rows.positions}{rows.groups}{features}", stored)
    leading = len(ordered) * (ordered.shape[1] if rows.positions else 1)
    return ordered.reshape(leading, -1, rows.dimensions[0], math.prod(ordered.shape[ordered.ndim - len(features) :]))


def _gradient_rows(rows: Rows, g: np.ndarray) -> np.ndarray:
    """[N, T, B, p]."""
    groups, _, p = rows.dimensions
    if isinstance(rows, LinearRows) and rows.batch_dims:
        batch = len(rows.batch_dims)
        g = np.moveaxis(g, range(batch), range(g.ndim - rows.output_axes - batch, g.ndim - rows.output_axes))
    return g.reshape(g.shape[0] if g.ndim > 1 else 1, -1, groups, p)


def _patches(rows: ConvRows, a: np.ndarray) -> np.ndarray:
    rank, lead = len(rows.kernel), a.shape[: a.ndim - len(rows.kernel) - 1]
    a = a.reshape(-1, *a.shape[len(lead) :])
    reach = [(k - 1) * step for k, step in zip(rows.kernel, rows.kernel_dilation, strict=True)]
    pads = []
    for i in range(rank):
        size, stride = a.shape[1 + i], rows.strides[i]
        if rows.padding == "SAME":
            missing = max((math.ceil(size / stride) - 1) * stride + reach[i] + 1 - size, 0)
            pads.append((missing // 2, missing - missing // 2))
        elif rows.padding in ("CIRCULAR", "REFLECT"):
            pads.append((reach[i] // 2, (reach[i] + 1) // 2))
        elif rows.padding == "CAUSAL":
            pads.append((reach[i], 0))
        else:
            pads.append((0, 0) if isinstance(rows.padding, str) else rows.padding[i])
    spread = np.zeros(
        (len(a), *((n - 1) * s + 1 for n, s in zip(a.shape[1:-1], rows.input_dilation, strict=True)), a.shape[-1])
    )
    spread[(slice(None), *(slice(None, None, s) for s in rows.input_dilation))] = a
    width = [(0, 0), *((max(low, 0), max(high, 0)) for low, high in pads), (0, 0)]
    if rows.padding == "CIRCULAR":
        a = np.pad(spread, width, mode="wrap")
    elif rows.padding == "REFLECT":
        a = np.pad(spread, width, mode="reflect")
    else:
        a = np.pad(spread, width)
    # A negative padding crops.
    crop = (slice(max(-low, 0), n - max(-high, 0)) for (low, high), n in zip(pads, a.shape[1:-1], strict=True))
    a = a[(slice(None), *crop)]
    corners = itertools.product(
        *(range(0, n - r, s) for n, r, s in zip(a.shape[1:-1], reach, rows.strides, strict=True))
    )
    patches = []
    for corner in corners:
        window = (slice(c, c + r + 1, s) for c, r, s in zip(corner, reach, rows.kernel_dilation, strict=True))
        patches.append(a[(slice(None), *window)].reshape(len(a), math.prod(rows.kernel), -1))
    stacked = np.stack(patches, axis=1)
    return stacked.reshape(lead[0] if lead else 1, -1, *stacked.shape[2:])
