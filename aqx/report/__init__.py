"""Pictures of what was found."""

from aqx.report.curves import Panel, check_plot, draw_panels

__all__ = ["Panel", "check_plot", "draw_panels"]
