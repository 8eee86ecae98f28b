"""What the stages of scripts/bench_gpu share: a row of figures, and the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax

Figure = float | int | str


@dataclass(frozen=True)
class Row:
    """A row of the table, printed as soon as it is measured.

    Attributes:
        what: what was measured, e.g. "64 functions × 196,608 elements".
        figures: by name and in the order shown, the unit at the end of the name, e.g. `{"map_ms": 0.2, "ratio": 17}`.
    """

    what: str
    figures: Mapping[str, Figure]

    def __str__(self) -> str:
        shown = ((name, f"{it:,.4g}" if isinstance(it, float) else it) for name, it in self.figures.items())
        return f"{self.what} | {' · '.join(f'{name} {it}' for name, it in shown)}"


def on_gpu() -> bool:
    """Return whether JAX computes on a GPU."""
    return jax.default_backend() != "cpu"


def device_name() -> str:
    """Return the device's name and JAX's version."""
    return f"{jax.devices()[0].device_kind} ({jax.default_backend()}), jax {jax.__version__}"
