"""The built-in tasks' data: split into training, validation and test rows, and kept on disk once made."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from aqx.machine import cache_folder
from aqx.writing import replacing


class Split(NamedTuple):
    """Inputs and classes of training, validation and test rows; a pytree, so that it travels through `jax.jit`."""

    x: Float[np.ndarray, "N *D"]
    y: Integer[np.ndarray, " N"]
    x_val: Float[np.ndarray, "V *D"]
    y_val: Integer[np.ndarray, " V"]
    x_test: Float[np.ndarray, "W *D"]
    y_test: Integer[np.ndarray, " W"]


def cached_arrays(name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return arrays from the user's cache folder, making and storing them the first time.

    Worker processes start often, and importing what makes the data costs seconds. Several processes may come at once:
    each writes a file of its own and renames it into place. A folder that cannot be written is only slower.

    Args:
        name: file name without ending; it holds the versions of whatever the arrays depend on.
        make: returns the arrays by name.

    Returns:
        The arrays by name.
    """
    path = cache_folder() / f"{name}.npz"
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception:  # absent, or damaged in one of the many ways that zip and npy files can be
        arrays = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft, open(draft, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError:
        pass
    return arrays
