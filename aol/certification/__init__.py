"""Proofs and probes of Lipschitz bounds, and the certified radii that follow from them.

A **bound** of a layer is proven from its weights (`bounds`) or its options (`rules`), that of a
**chain** layer by layer (`chain`). A **certificate** holds the bounds of a network's layers and the
stretches that a search found (`certificate`, `lipschitz`). A **certified radius** is the distance
within which no change of an image changes its class (`radius`).
"""
