"""The authors' outputs in `golden/`, and the inputs they were made from.

The golden files hold what the authors' TensorFlow code computed (its layers, losses, metrics,
models and optimiser, unmodified). The large weights are not stored: both sides draw them from
numpy's generator as below. TensorFlow's layouts are conv (K, L, I, O), dense (I, O) and images
(N, H, W, C); ours are (O, I, K, L), (O, I) and (N, C, H, W).
"""

import json
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name):
    """The arrays of `golden/name.npz`."""
    return np.load(GOLDEN / f"{name}.npz")


def properties(name):
    """The contents of `golden/name.json`."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def text(array):
    """A string kept in an array, parsed as JSON where it is JSON."""
    return json.loads(str(array))


def weight_from_tf(kernel, dtype=torch.float64):
    """A kernel or matrix in our layout."""
    order = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
    return torch.tensor(kernel).to(dtype).permute(order).contiguous()


def weight_to_tf(weight):
    """Our kernel or matrix as an array in TensorFlow's layout."""
    order = (2, 3, 1, 0) if weight.ndim == 4 else (1, 0)
    return weight.detach().permute(order).contiguous().numpy()


def images_from_tf(images, dtype=torch.float64):
    """Images (N, H, W, C), or rows (N, C), in our layout."""
    tensor = torch.tensor(images).to(dtype)
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def images_to_tf(images):
    """Our images, or rows, as an array in TensorFlow's layout."""
    images = images.detach()
    return (images.permute(0, 2, 3, 1) if images.ndim == 4 else images).numpy()


def drawn_parameters(shapes, *, seed, noise=0.05):
    """
    (kernel, bias) per TensorFlow kernel shape, float32: small noise on a centred, tiled identity.

    An input's row of the identity is divided by the root of how many inputs share an output.
    """
    generator = np.random.default_rng(seed)
    for shape in shapes:
        *taps, inputs, outputs = shape
        size = np.float32(noise / (inputs * np.prod(taps, dtype=int)))
        kernel = size * generator.standard_normal(shape, dtype=np.float32)
        sharing = -(-inputs // outputs)
        centre = tuple((tap - 1) // 2 for tap in taps)
        for row in range(inputs):
            kernel[(*centre, row, row % outputs)] += np.float32(sharing**-0.5)
        yield kernel, np.float32(0.01) * generator.standard_normal(outputs, dtype=np.float32)


def drawn_batch(*, seed, count, classes):
    """Uniform images (count, 32, 32, 3) float32 and labels."""
    generator = np.random.default_rng(seed)
    images = generator.random((count, 32, 32, 3), dtype=np.float32)
    return images, generator.integers(0, classes, count)


def load_parameters(model, parameters, dtype):
    """Give the model's layers, in order, the (kernel, bias) pairs; return the layers."""
    layers = [layer for layer in model if hasattr(layer, "weight")]
    for layer, (kernel, bias) in zip(layers, parameters, strict=True):
        layer.weight = torch.nn.Parameter(weight_from_tf(kernel, dtype))
        layer.bias = torch.nn.Parameter(torch.from_numpy(bias).to(dtype))
    return layers


def worst(ours, theirs):
    """The largest difference, in units of the largest reference value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
