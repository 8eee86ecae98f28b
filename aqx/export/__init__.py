"""A found function as plain source of another framework, as a formula, and as JavaScript for a page."""

from aqx.export.formula import formula, latex
from aqx.export.javascript import javascript_operators
from aqx.export.source import TARGETS, source

__all__ = ["TARGETS", "formula", "javascript_operators", "latex", "source"]
