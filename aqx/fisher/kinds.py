"""Kinds of layers: how a call of a layer of a known type is read as rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aqx.fisher.rows import Call, Rows

# (layer, shape of its kernel, call) -> rows; raises UnsupportedError where the layer is not Kronecker.
MakeRows = Callable[[Any, tuple[int, ...], Call], Rows]


@dataclass(frozen=True)
class Kind:
    """How layers of one type are read; a new kind of layer is one entry in the table `KINDS` of its flavour.

    Attributes:
        make_rows: what makes the rows of a call.
        kernel: name of the parameter that multiplies the input.
    """

    make_rows: MakeRows
    kernel: str = "kernel"

    def use(
        self,
        layer: Any,
        kernel: tuple[int, ...],
        method: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Use:
        """The use that `method(layer, *args, **kwargs)` makes of a layer whose kernel has this shape."""
        _, *call = inspect.signature(method).bind(layer, *args, **kwargs).arguments.items()
        return Use(self, layer, kernel, dict(call))


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


def kind_of(layer: type, kinds: Mapping[type, Kind]) -> Kind | None:
    """The kind of a type of layer, None where it is none of those.

    A subclass that keeps a layer's own __call__ computes what the layer computes; one that overrides it may not.
    """
    return next((kind for known, kind in kinds.items() if known.__call__ is layer.__call__), None)
