"""Trained networks as files in open formats, the rescaling folded into plain weights."""
