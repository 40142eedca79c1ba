"""Proofs and probes of Lipschitz bounds, and the certified radii that follow from them.

A **bound** is proven from the weights (`bounds`). A **certificate** holds the bounds of a network's
layers and the violations that a search found (`certificate`, `lipschitz`). A **certified radius**
is the distance within which no change of an image changes its class (`radius`).
"""
