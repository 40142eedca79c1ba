"""The report's pictures, each as PNG and SVG."""

from orchestrator.figures.drawing import by_run, draw_figures, figures_of

__all__ = ["by_run", "draw_figures", "figures_of"]
