"""Rendering of a report: Markdown, LaTeX, CSV, JSON, one HTML page, figures."""
