"""Packages whose names are imported when they are first asked for: JAX takes a second, and not everybody needs it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module, util
from types import ModuleType
from typing import Any


def on_demand(package: str, homes: Mapping[str, Sequence[str]]) -> None:
    """Let a package have names, and its modules, that are imported when they are first asked for.

    Type checkers do not read this call: beside it, `if TYPE_CHECKING:` imports the same names. A test holds the two,
    and `__all__`, equal.

    Args:
        package: the package's `__name__`, given in its `__init__`.
        homes: names by the module that defines them.

    Example:
        >>> import subprocess, sys
        >>> code = "import sys, aqx; aqx.parse('relu(x)'); print('jax' in sys.modules, 'Study' in dir(aqx))"
        >>> print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip())
        False True
    """
    module = sys.modules[package]
    vars(module)["_homes"] = {name: home for home, names in homes.items() for name in names}
    module.__class__ = _Package


class _Package(ModuleType):
    # A class and no module-level `__getattr__`, because of `aqx.activation`, a function in a file of its name.
    _homes: dict[str, str]

    def __getattr__(self, name: str) -> Any:
        if name in self._homes:
            value = getattr(import_module(self._homes[name]), name)
            setattr(self, name, value)
            return value
        if not name.startswith("_") and util.find_spec(f"{self.__name__}.{name}"):
            return import_module(f"{self.__name__}.{name}")
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        # Whoever imports a file has Python bind it to its name in the package, where the function belongs.
        if isinstance(value, ModuleType) and value.__name__ == self._homes.get(name):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._homes})
