"""Show a report: markdown, LaTeX, CSV, JSON, one HTML page, figures."""
