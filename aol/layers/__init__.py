"""The layers of the paper's networks as modules.

`modules` has the layers that are trained: each keeps a **raw parameter** and applies the **rescaled
weight**. `parametrization` gives layers of torch the same rescaling. `plain` has what remains in an
exported network and imports nothing of this package.
"""
