"""Figures of a report, each as PNG and SVG."""

from orchestrator.reporting.figures.draw import OVERALL, by_run, draw_figures, figures_of, files_of

__all__ = ["OVERALL", "by_run", "draw_figures", "figures_of", "files_of"]
