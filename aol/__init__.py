"""Almost-Orthogonal Layers in PyTorch: layers, models, data, training and certificates.

Knows nothing of scheduling, tracking or storage. Source: arXiv:2208.03160.
"""
