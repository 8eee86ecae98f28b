"""What differs between Flax Linen and Flax NNX: the rest of this room asks a flavour, and never which one it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from aqx.fisher.factors import Attach
from aqx.fisher.layers import Apply, Sightings


@runtime_checkable
class Flavour(Protocol):
    """How to take models of one kind apart and reach their layers: the modules `aqx.fisher.linen` and `aqx.fisher.nnx`.

    A model comes with its variables, which are None where it holds its own. None of these functions changes either.
    """

    def default_apply(self, model: Any, variables: Any, x: Any) -> Any:
        """The model's outputs, where the user does not say how it is applied."""
        ...

    def split(self, model: Any, variables: Any) -> tuple[Any, Any]:
        """(structure, state): what a program is compiled for, and the arrays that are its argument."""
        ...

    def merge(self, structure: Any, state: Any) -> tuple[Any, Any]:
        """(model, variables) of a structure and a state that fits it."""
        ...

    def parameters(self, state: Any) -> dict[str, dict[str, Any]]:
        """The parameters in a state, by module path and name: all that a gradient would train, each once."""
        ...

    def replaced(self, state: Any, parameters: Mapping[str, Mapping[str, Any]]) -> Any:
        """The state with other values of its parameters."""
        ...

    def structure(self, build: Callable[[], Any]) -> Any:
        """The structure, as from `split`, of the model that `build` returns; its parameters are not computed."""
        ...

    def discover(self, model: Any, variables: Any, x: Any, apply: Apply) -> Sightings:
        """What one trace of the model, without computing, shows of the modules that hold its parameters."""
        ...

    def run(
        self,
        model: Any,
        variables: Any,
        dummies: Mapping[str, Mapping[str, Any]],
        x: Any,
        apply: Apply,
        attach: Attach,
        wide: bool = False,
    ) -> Any:
        """The model's outputs, after `attach(path, rows, a, out, dummies)` has taken the place of each layer's output.

        Args:
            model: the model.
            variables: its variables.
            dummies: by layer path and name, in the stored layout; `attach` gets those of one slice, in the same order.
            x: a batch.
            apply: `apply(model, variables, x)`.
            attach: hashable; what it does may depend on nothing but itself and its arguments.
            wide: whether modules that are told to compute in fewer bits compute in float32.
        """
        ...
