"""Pictures of what was found: the HTML report, and figures for papers."""

from aqx.report.figures import FIGURES, write_figure
from aqx.report.html import write_report
from aqx.report.panels import Panel, check_plot, draw_panels

__all__ = ["FIGURES", "Panel", "check_plot", "draw_panels", "write_figure", "write_report"]
