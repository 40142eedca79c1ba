"""Train a network: the trainer and its parts, the loop around it, and the folder of a run."""
