"""Trained networks as files: the rescaling folded into plain weights, in open formats."""
