"""Figures of a report, each as PNG and SVG."""

from orchestrator.reporting.figures.draw import draw_figures, figures_of, files_of

__all__ = ["draw_figures", "figures_of", "files_of"]
