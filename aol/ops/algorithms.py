"""Choose how a kernel is rescaled, by its shape, and count the operations; without torch."""

NARROWEST = 24  # input channels; below, autograd is as fast as any gradient by hand: measured

NARROW = 72  # input channels; below, one convolution is faster than several products: measured

NARROW_DENSE = 256  # inputs; below, autograd is faster than a gradient by hand: measured

TOOM_COOK = 72  # input channels of 3 x 3 kernels; from here on fewer products pay: measured

BLOCK = 512  # halving smaller symmetric products costs what it saves: measured


def takes_toom_cook(inputs: int, rows: int, columns: int) -> bool:
    """Return whether the Gram kernel is computed as in `aol.ops.toom_cook`."""
    return rows == columns == 3 and inputs >= TOOM_COOK


def rescale_flop(outputs: int, inputs: int, kernel: int) -> int:
    """Return the floating-point operations of one rescaling and its backward pass.

    Products only, for a kernel of `outputs` by `inputs` channels with `kernel`**2 taps.
    """
    if kernel == 1:
        backward = 4 if inputs < NARROW_DENSE else 2  # autograd's has two products
        return _symmetric(outputs, inputs) + backward * outputs * inputs**2
    if inputs < NARROW:
        return _narrow(outputs, inputs, kernel)
    if takes_toom_cook(inputs, kernel, kernel):
        return _toom_cook(outputs, inputs)
    return _half_plane(outputs, inputs, kernel)


def _symmetric(rows: int, size: int) -> int:
    """Count one symmetric product, rows^T rows, in blocks."""
    if size <= BLOCK:
        return 2 * rows * size**2
    first, second = size // 2, size - size // 2
    return _symmetric(rows, first) + _symmetric(rows, second) + 2 * rows * first * second


def _narrow(outputs: int, inputs: int, kernel: int) -> int:
    """Count a convolution of the kernel with itself, and the gradient: two more by autograd."""
    convolutions = 3 if inputs < NARROWEST else 2
    return convolutions * 2 * outputs * inputs**2 * kernel**2 * (2 * kernel - 1) ** 2


def _toom_cook(outputs: int, inputs: int) -> int:
    """Count 20 products, 25 for the gradient, and the sums of taps and weights in them."""
    products = 2 * outputs * inputs**2 * (20 + 25)
    sums_of_taps = outputs * inputs * (20 * 2 * 2 * 9 + 5 * 2 * (2 * 5 * 9))
    sums_of_weights = inputs**2 * 5 * 2 * (5 * 5 + 5 * 5)
    return products + sums_of_taps + sums_of_weights


def _half_plane(outputs: int, inputs: int, kernel: int) -> int:
    """Count a product per displacement and pair of taps, and two for the gradient."""
    taps = kernel**2
    displaced = (taps**2 - taps) // 2  # pairs of different taps
    product = 2 * outputs * inputs**2
    return _symmetric(taps * outputs, inputs) + product * (taps + 3 * displaced)
