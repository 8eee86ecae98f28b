"""Every public name of aqx is documented; what `aqx` itself exports is shown by an example as well."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from functools import cached_property
from types import ModuleType
from typing import Any

import click
import pytest

import aqx

FOUND = [found for found in pkgutil.walk_packages(aqx.__path__, "aqx.") if "._" not in found.name]
MODULES = ["aqx", *(found.name for found in FOUND)]
# Rooms that nobody but aqx enters: their functions are documented, but not argument by argument.
INSIDE = {"aqx.numerics", "aqx.store", "aqx.cli"}
PACKAGES = ["aqx", *(found.name for found in FOUND if found.ispkg and found.name not in INSIDE)]


def public_names(module: ModuleType) -> dict[str, Any]:
    """What `__all__` lists; without one, what the module itself defines under a name without underscore."""
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name: value for name, value in own.items() if getattr(value, "__module__", None) == module.__name__}


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """The methods and properties that a class itself defines under public names."""
    for name, value in vars(kind).items():
        if isinstance(value, classmethod | staticmethod):
            value = value.__func__
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property | cached_property)):
            yield name, value


def doc_of(value: Any) -> str:
    """The docstring that was written for a function, class, property or command, not one that Python made."""
    own = value.help if isinstance(value, click.Command) else value.__doc__
    text = vars(value).get("__doc__") if isinstance(value, type) else own  # not that of the class it derives from
    generated = isinstance(value, type) and (text or "").startswith(f"{value.__name__}(")
    return "" if generated or not text else inspect.cleandoc(text)


def is_documentable(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, type | click.Command)


def undocumented(module: ModuleType) -> list[str]:
    """The public names of a module that lack a docstring."""
    found = [] if module.__doc__ else ["the module itself"]
    for name, value in public_names(module).items():
        if not is_documentable(value):
            continue
        if not doc_of(value):
            found.append(name)
        if isinstance(value, type):
            found += [f"{name}.{member}" for member, inner in members(value) if not doc_of(inner)]
    return found


def omissions(function: Any) -> list[str]:
    """What the docstring of a function leaves open: arguments, the result, errors that it raises itself."""
    doc, signature = doc_of(function), inspect.signature(function)
    found = []
    if len(signature.parameters) > 1:
        described = doc.partition("Args:\n")[2].partition("\n\n")[0]
        listed = {line.strip().partition(":")[0].lstrip("*") for line in described.splitlines()}
        # "low, high: bounds" describes both.
        listed = {name.strip() for names in listed for name in names.split(",")}
        found += [f"the argument {name}" for name in signature.parameters if name not in listed]
    silent = signature.return_annotation in (None, "None", "NoReturn")
    if not silent and not re.match("(Return|Yield|The|A|An|Whether|How many) ", doc) and "Returns:" not in doc:
        found.append("what it returns")
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    raised = {node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc}
    if raised and "Raises:" not in doc:
        found.append("what it raises")
    return found


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_documented(name: str):
    assert not undocumented(importlib.import_module(name))


@pytest.mark.parametrize("name", PACKAGES)
def test_what_packages_export_is_described(name: str):
    exported = public_names(importlib.import_module(name)).items()
    lacking = {key: omissions(value) for key, value in exported if inspect.isfunction(value)}
    assert not {key: found for key, found in lacking.items() if found}


SHOWN = {**public_names(aqx), **public_names(aqx.losses)}
SHOWN["fisher.eigenvalues"] = aqx.fisher.eigenvalues


@pytest.mark.parametrize("name", [name for name, value in SHOWN.items() if is_documentable(value)])
def test_what_aqx_exports_has_an_example(name: str):
    value = SHOWN[name]
    if isinstance(value, type) and issubclass(value, Exception):
        pytest.skip("an error is shown by what raises it")
    assert ">>> " in doc_of(value)


def _plain(module_doc: str | None, **names: Any) -> ModuleType:
    module = ModuleType("made", module_doc)
    for name, value in names.items():
        value.__module__, value.__name__ = "made", name
        setattr(module, name, value)
    return module


def test_what_is_undocumented_is_seen():
    from dataclasses import dataclass

    def bare() -> None: ...

    @dataclass
    class Bare:
        x: int = 0

        def method(self) -> None: ...

        @property
        def shown(self) -> int:
            """A number."""
            return self.x

    module = _plain(None, bare=bare, Bare=Bare, _hidden=lambda: None)
    assert undocumented(module) == ["the module itself", "bare", "Bare", "Bare.method"]


def test_what_a_docstring_omits_is_seen():
    def vague(a: int, b: int) -> int:
        """Add.

        Args:
            a: a number.
        """
        if not a:
            raise ValueError("a=0")
        return a + b

    assert omissions(vague) == ["the argument b", "what it returns", "what it raises"]
