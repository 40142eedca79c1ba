"""Fast rescaling and MaxMin: Gram kernels, products, hand-written gradients, GPU kernels.

The **Gram kernel** of a convolution is its correlation with itself; `rescale` turns its absolute
sums into the scale of each input channel, the paper's theorem. `algorithms` chooses how a kernel is
rescaled by its shape, `dispatch` where Triton kernels run.
"""
