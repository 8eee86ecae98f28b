"""Kinds of layers: how a call of a layer of a known type is read as rows; people's own types can be registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from aqx.errors import InputError, UnsupportedError
from aqx.fisher.einsum import einsum_rows
from aqx.fisher.rows import Call, Rows, conv_rows, dense_rows, embed_rows

# (layer, shape of its kernel, call) -> rows; raises UnsupportedError where the layer is not Kronecker.
MakeRows = Callable[[Any, tuple[int, ...], Call], Rows]


@dataclass(frozen=True)
class Kind:
    """How layers of one type are read; a new kind of layer is one entry in the table `KINDS` of its flavour.

    Attributes:
        make_rows: what makes the rows of a call.
        kernel: name of the parameter that multiplies the input.
        bias: name of the parameter that is added.
        defaults: attributes that `make_rows` asks for, where the layer has none of that name.
        like: the kind that a user has named; empty for Flax's own layers.
    """

    make_rows: MakeRows
    kernel: str = "kernel"
    bias: str = "bias"
    defaults: tuple[tuple[str, Any], ...] = ()
    like: str = ""

    def use(
        self,
        layer: Any,
        kernel: tuple[int, ...],
        has_bias: bool,
        method: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Use:
        """The use that `method(layer, *args, **kwargs)` makes of a layer whose kernel has this shape."""
        _, *call = inspect.signature(method).bind(layer, *args, **kwargs).arguments.items()
        seen = _WithDefaults(layer, {**dict(self.defaults), "use_bias": has_bias}) if self.like else layer
        return Use(self, seen, kernel, dict(call))


@dataclass(frozen=True)
class Use:
    """One call of a layer.

    Attributes:
        kind: of the layer.
        layer: the module, as the model calls it.
        kernel: shape of its kernel there, so of one slice where a transform stacked the layer.
        call: the arguments.
    """

    kind: Kind
    layer: Any
    kernel: tuple[int, ...]
    call: Call

    @property
    def a(self) -> Any:
        """The layer's input: the first argument, whatever its name."""
        return next(iter(self.call.values()))

    @property
    def rows(self) -> Rows:
        """How its input and output are rows; raises UnsupportedError where the layer is not Kronecker."""
        return self.kind.make_rows(self.layer, self.kernel, self.call)

    def rows_of(self, out: Any) -> Rows:
        """The rows, once input and output have been seen to be such rows.

        Raises:
            UnsupportedError: they are not.
        """
        if not self.kind.like:
            return self.rows
        unlike = f"it cannot be read like {self.kind.like!r}"
        try:
            rows = self.rows
            groups, d, p = rows.dimensions
            inputs, gradients = jax.eval_shape(rows.inputs, self.a).shape, jax.eval_shape(rows.gradients, out).shape
            fits = gradients[2:] == (groups, p) and inputs[:2] == gradients[:2] and inputs[2:] in ((), (groups, d))
        except UnsupportedError:
            raise
        except Exception as error:  # whatever the layer lacks or its shapes do not allow
            raise UnsupportedError(f"{unlike}: {type(error).__name__}: {error}".splitlines()[0]) from error
        if not fits:
            raise UnsupportedError(f"{unlike}: its kernel is {self.kernel}, its rows {inputs} and {gradients}")
        return rows


class _WithDefaults:
    """A layer with the attributes that it lacks."""

    def __init__(self, layer: Any, defaults: Mapping[str, Any]):
        self._layer, self._defaults = layer, defaults

    def __getattr__(self, name: str) -> Any:
        known = self._defaults
        if name == "use_bias":
            return known[name]
        return getattr(self._layer, name, known[name]) if name in known else getattr(self._layer, name)


_CONVOLUTION = {
    "strides": 1,
    "padding": "SAME",
    "input_dilation": 1,
    "kernel_dilation": 1,
    "feature_group_count": 1,
    "mask": None,
}
_LIKE: dict[str, tuple[MakeRows, Mapping[str, Any]]] = {
    "dense": (dense_rows, {}),
    "conv": (conv_rows, _CONVOLUTION),
    "einsum": (einsum_rows, {}),
    "embed": (embed_rows, {}),
}
_registered: dict[type, Kind] = {}


def register_layer(layer: Any, *, like: str, kernel: str | None = None, bias: str = "bias") -> None:
    """Have the layers of a type of one's own covered, as a kind of layer that aqx knows.

    What is registered is tested on each model like every other layer: where the type does something else with its
    weights, as a standardised kernel or a scaled table does, its layers are named and left out.

    Args:
        layer: the class, a Flax Linen or NNX module; its first argument is the input.
        like: "dense": x·kernel + bias, kernel [in, out]; "conv": a convolution, kernel [*window, in, out], with the
            attributes strides, padding, input_dilation, kernel_dilation and feature_group_count as Flax has them where
            the type has them; "einsum": the equation in the attribute (or argument) einsum_str; "embed": the rows of a
            table [entries, features].
        kernel: name of the parameter that multiplies the input; default "kernel", "embedding" for a table.
        bias: name of the parameter that is added, where there is one.

    Raises:
        InputError: `layer` is no class, or `like` is unknown.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from aqx import fisher
        >>> class Affine(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         return x @ self.param("w", nn.initializers.lecun_normal(), (x.shape[-1], 2))
        >>> fisher.register_layer(Affine, like="dense", kernel="w")
        >>> x = jnp.ones((8, 3))
        >>> fisher.coverage(Affine(), Affine().init(jax.random.key(0), x), x).share
        1.0
    """
    if not isinstance(layer, type):
        raise InputError(f"layer={layer!r} is not a class; give the type of the layers, as register_layer(MyDense, …)")
    if like not in _LIKE:
        raise InputError(f"like={like!r} is unknown; give one of {', '.join(_LIKE)}")
    make_rows, defaults = _LIKE[like]
    name = kernel or ("embedding" if like == "embed" else "kernel")
    _registered[layer] = Kind(make_rows, name, bias, tuple(defaults.items()), like)


def few_bits(layer: Any) -> bool:
    """Whether a module is told to compute in fewer bits than float32."""
    dtype = getattr(layer, "dtype", None)
    try:
        return dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    except (TypeError, ValueError):  # what people call dtype may be anything
        return False


def kind_of(layer: type, kinds: Mapping[type, Kind]) -> Kind | None:
    """The kind of a type of layer, None where it is none of those.

    A subclass that overrides nothing but how it is constructed is what it inherits from; of one that overrides anything
    nobody knows what it computes.
    """
    for base in layer.__mro__:
        if kind := _registered.get(base) or kinds.get(base):
            return kind if all(_overrides_nothing(below, base) for below in _below(layer, base)) else None
    return None


def _below(layer: type, base: type) -> Sequence[type]:
    return layer.__mro__[: layer.__mro__.index(base)]


def _overrides_nothing(below: type, base: type) -> bool:
    fields = getattr(base, "__dataclass_fields__", {})
    return not any(
        hasattr(base, name)
        for name, value in vars(below).items()
        if name not in fields
        and (callable(value) or isinstance(value, property | classmethod | staticmethod))
        and (name in ("__call__", "__getattr__", "__getattribute__") or not name.startswith("_"))
    )
