import numpy as np
import pytest
import torch
from torch import nn

from aol.certification import spectrum
from aol.certification.singular_values import BINS, Spectrum, share_nearly_orthogonal
from aol.certification.spectrum import jacobian_spectrum, layer_spectra
from aol.config import ModelConfig
from aol.layers.initialisers import identity_
from aol.layers.modules import AOLConv2d, AOLLinear
from aol.models.architectures import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


def noisy(layer, seed=0, size=0.3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight += size * torch.randn(layer.weight.shape, generator=generator)
    return layer


def explicit(layer, shape):
    """
    The singular values of the layer as a matrix, by its action on every unit vector.
    """
    size = int(np.prod(shape))
    with torch.no_grad():
        inputs = torch.eye(size, dtype=torch.float64).view(size, *shape)
        exact = layer.double()
        rows = (exact(inputs) - exact(torch.zeros(1, *shape, dtype=torch.float64))).flatten(1)
    return torch.linalg.svdvals(rows)


def histogram(values):
    return np.histogram(np.clip(values, 0, 1 - 1e-12), bins=BINS, range=(0, 1))[0] / len(values)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (AOLLinear(20, 30), (20,)),
        (AOLLinear(30, 20), (30,)),
        (AOLConv2d(4, 4, 1, padding="same"), (4, 6, 6)),
        (AOLConv2d(4, 6, 3, padding="same"), (4, 6, 6)),
        (AOLConv2d(6, 4, 3, padding="same"), (6, 5, 7)),
        (AOLConv2d(3, 3, 2), (3, 6, 6)),
    ],
)
def test_small_operators_have_their_exact_singular_values(layer, shape):
    (found,) = layer_spectra(nn.Sequential(noisy(layer)), shape)
    values = explicit(layer, shape).numpy()

    assert found.exact
    assert found.size == len(values)
    assert found.shares == pytest.approx(histogram(values), abs=1e-3)
    assert found.nearly_orthogonal == pytest.approx(np.mean(values >= 0.9), abs=2e-3)


def test_a_large_convolution_is_estimated_with_its_zero_padding(monkeypatch):
    """
    Against the exact values of the same operator; the borders of 8 x 8 images matter.
    """
    layer = noisy(AOLConv2d(12, 12, 3, padding="same", initialiser=identity_), size=0.05)
    values = explicit(layer, (12, 8, 8)).numpy()
    monkeypatch.setattr(spectrum, "EXACT_SIZE", 100)
    (found,) = layer_spectra(nn.Sequential(layer.float()), (12, 8, 8))

    assert not found.exact
    assert found.size == 12 * 64
    assert sum(found.shares) == pytest.approx(1.0)
    assert np.cumsum(found.shares) == pytest.approx(np.cumsum(histogram(values)), abs=0.06)


def test_a_network_starts_orthogonal_and_does_not_stay_so():
    model = build_model(ModelConfig(kind="patchwise", width=1 / 16), 10, torch.Generator())
    start = layer_spectra(model, (3, 32, 32))
    for layer in model:
        if isinstance(layer, AOLConv2d | AOLLinear):
            noisy(layer)
    later = layer_spectra(model, (3, 32, 32))

    assert len(start) == 28
    assert share_nearly_orthogonal(start) > 0.95
    assert share_nearly_orthogonal(later) < 0.3


def test_the_jacobian_has_a_singular_value_per_class_and_image():
    """
    A network without biases of one orthogonal layer is its own Jacobian.
    """
    model = nn.Sequential(nn.Flatten(), AOLLinear(48, 10, bias=False))
    found = jacobian_spectrum(model, torch.rand(5, 3, 4, 4))

    assert found.size == 5 * 10
    assert sum(found.shares) == pytest.approx(1.0)


def test_a_spectrum_is_stored_and_read_back():
    kept = Spectrum("3 dense", 4, exact=True, shares=(*[0.0] * (BINS - 1), 1.0))

    assert Spectrum.from_dict(kept.as_dict()) == kept
    with pytest.raises(ValueError, match="2 shares, expected 50"):
        Spectrum.from_dict(kept.as_dict() | {"shares": [0.5, 0.5]})
