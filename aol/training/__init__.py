"""Training: loss, metrics, step, trainer, and a run's folder of plain files."""
