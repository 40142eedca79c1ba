"""Proofs and probes of Lipschitz bounds, and the certified radii that follow from them.

A **bound** is proven from the weights (`bounds`), a **chain** of modules layer by layer (`chain`).
A **certificate** holds the bounds of a network's layers and the stretches that a search found
(`certificate`, `lipschitz`). A **certified radius** is the distance within which no change of an
image changes its class (`radius`).
"""
