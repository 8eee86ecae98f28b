"""Every example in a docstring of aqx runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import aqx

ROOT = Path(aqx.__file__).parent
SOURCES = sorted(path for path in ROOT.rglob("*.py") if ">>> " in path.read_text())


class _Finder(doctest.DocTestFinder):
    """Also finds the functions that the shape checks have wrapped, which look foreign to their module."""

    def _from_module(self, module, object):
        return super()._from_module(module, inspect.unwrap(object) if callable(object) else object)  # type: ignore[misc]


# An example need not tidy up its temporary folder.
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    parts = source.relative_to(ROOT.parent).with_suffix("").parts
    module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
    tests = _Finder(exclude_empty=True).find(module, module.__name__)
    assert sum(len(test.examples) for test in tests) == source.read_text().count(">>> "), "an example was not found"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in tests:
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
