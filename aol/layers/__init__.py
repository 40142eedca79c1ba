"""The layers of the paper's networks as modules.

`modules` has the layers that are trained; each keeps a **raw parameter** and applies the **rescaled
weight**. `plain` has the same layers without this package, for exported networks.
"""
