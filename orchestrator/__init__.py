"""Schedule, record and report the runs of a YAML file of experiments."""
