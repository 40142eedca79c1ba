import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from aol.certification.lipschitz import certify_network
from aol.certification.radius import certified_radius, prove_bound
from aol.config import ModelConfig
from aol.layers.modules import AOLConv2d, AOLLinear, MaxMin, in_float64
from aol.layers.parametrization import parametrize
from aol.layers.plain import Flatten
from aol.models.architectures import build_model
from aol.training.metrics import margins

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def diagonal(*factors, bias=None):
    """
    Return a layer whose scores are the inputs times these factors.
    """
    layer = nn.Linear(len(factors), len(factors)).double()
    layer.weight.data = torch.diag(torch.tensor(factors, dtype=torch.float64))
    layer.bias.data = torch.zeros(len(factors)) if bias is None else torch.tensor(bias)
    layer.bias.data = layer.bias.data.double()
    return layer


def test_the_radius_is_the_gap_over_root_two_and_the_bound():
    """
    For orthogonal scores it is the exact distance to the boundary.
    """
    images = torch.tensor([[3.0, 1.0, 2.5], [1.0, 4.0, 0.0]], dtype=torch.float64)
    found = certified_radius(diagonal(1.0, 1.0, 1.0), images, torch.tensor([0, 1]))

    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([0.5 / math.sqrt(2), 3 / math.sqrt(2)], rel=1e-8)
    assert (found < torch.tensor([0.5, 3.0]).double() / math.sqrt(2)).all()


@pytest.mark.parametrize("scale", [1e-3, 5.0, 1e4])
def test_the_radius_is_divided_by_the_bound_of_the_network_even_below_one(scale):
    images = torch.tensor([[3.0, 1.0]])
    found = certified_radius(diagonal(scale, scale), images, torch.tensor([0]))

    assert found.item() == pytest.approx(2 / math.sqrt(2), rel=1e-8)


@pytest.mark.parametrize("unit", [1.0, 255.0, 1e6])
def test_the_radius_is_in_the_units_of_the_images(unit):
    """
    The network is scaled to images in other units.
    """
    images = unit * torch.tensor([[3.0, 1.0], [0.5, 2.0]], dtype=torch.float64)
    network = nn.Sequential(diagonal(1 / unit, 1 / unit), AOLLinear(2, 2).double())
    network[1].weight.data = torch.eye(2).double()
    found = certified_radius(network, images, torch.tensor([0, 1]))

    assert found.tolist() == pytest.approx(
        [unit * 2 / math.sqrt(2), unit * 1.5 / math.sqrt(2)], rel=1e-5
    )


def test_misclassified_and_tied_images_have_a_radius_of_zero():
    images = torch.tensor([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [2.0, 2.0]])
    found = certified_radius(diagonal(1.0, 1.0), images, torch.tensor([1, 1, 0, 1]))

    assert found[1] > 0
    assert found[[0, 2, 3]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", [1.0, 1e6])
def test_a_gap_within_the_rounding_error_has_a_radius_of_zero(size):
    """
    The same gap of 1e-10 counts beside small entries and is lost beside large ones.
    """
    images = torch.tensor([[1 + 1e-10, 1.0, 0.0]], dtype=torch.float64)
    images[0, 2] = -size
    found = certified_radius(diagonal(1.0, 1.0, 1.0), images, torch.tensor([0]))

    assert bool(found > 0) == (size == 1)


def test_the_score_error_exceeds_that_from_exact_fractions():
    """
    This also holds for images far outside of [0, 1].
    """
    layers = [AOLLinear(5, 6), MaxMin(), nn.Linear(6, 3)]
    network = nn.Sequential(*layers).double()
    for seed, parameter in enumerate(network.parameters()):
        parameter.data = normal(*parameter.shape, seed=seed)
    image = 1e5 * normal(1, 5, seed=9)
    scores = network(image)[0]
    label = int(scores.argmax())
    x = [Fraction(value) for value in image[0].tolist()]
    for weight, bias in (
        (layers[0].rescaled(), layers[0].bias),
        (layers[2].weight, layers[2].bias),
    ):
        x = [
            sum((Fraction(w) * value for w, value in zip(row, x, strict=True)), Fraction(offset))
            for row, offset in zip(weight.tolist(), bias.tolist(), strict=True)
        ]
        if len(x) == 6:
            x = [one for i in range(0, 6, 2) for one in (max(x[i : i + 2]), min(x[i : i + 2]))]
    rest = [score for index, score in enumerate(x) if index != label]
    exact_gap = x[label] - max(rest)

    upper = certify_network(network, (5,), iterations=1, restarts=1, steps=1).upper
    found = certified_radius(network, image, torch.tensor([label])).item()
    assert 0 < found <= float(exact_gap) / (math.sqrt(2) * upper)
    assert found == pytest.approx(float(exact_gap) / (math.sqrt(2) * upper), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_radii_of_the_papers_networks_are_their_margins(dtype):
    model = build_model(ModelConfig(kind="conv", width=1 / 8), 10, torch.Generator().manual_seed(0))
    for seed, parameter in enumerate(model.parameters()):
        parameter.data += 0.02 * normal(*parameter.shape, seed=seed).float()
    model = model.to(dtype)
    images = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores = in_float64(model)(images.double())
    labels = scores.argmax(1)
    labels[:3] = (labels[:3] + 1) % 10
    expected = margins(scores, labels).clamp(min=0) / math.sqrt(2)

    torch.testing.assert_close(
        certified_radius(model, images, labels), expected, rtol=2e-5, atol=1e-8
    )


def test_no_attack_succeeds_within_the_radius():
    """
    The attack is gradient descent on the margin to just inside the radius. Somewhat beyond it, some
    images flip.
    """
    network = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    for seed, parameter in enumerate(network.parameters()):
        parameter.data = normal(*parameter.shape, seed=seed)
    images = 5 * normal(200, 6, seed=7)
    labels = network(images).argmax(1)
    radius = certified_radius(network, images, labels)
    assert (radius > 0).all()

    for factor, flips in ((1 - 1e-6, False), (6.0, True)):
        change = torch.zeros_like(images)
        limit = factor * radius[:, None]
        for _ in range(50):
            change = change.detach().requires_grad_()
            (slope,) = torch.autograd.grad(margins(network(images + change), labels).sum(), change)
            change = change - 0.1 * limit * slope / slope.norm(dim=1, keepdim=True)
            change = change * (limit / change.norm(dim=1, keepdim=True)).clamp(max=1)
        flipped = network(images + change).argmax(1) != labels
        assert bool(flipped.any()) == flips


def test_parametrized_and_nested_networks_and_images_of_any_shape():
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=2), nn.ReLU()), nn.Flatten(), nn.Linear(256, 3)
    )
    parametrize(network)
    images = torch.rand(7, 1, 6, 6)
    labels = network(images).argmax(1)
    found = certified_radius(network, images, labels)

    assert found.shape == (7,)
    assert (found > 0).all()
    assert network(images).requires_grad
    rows = nn.Sequential(AOLLinear(4, 3))
    assert certified_radius(rows, torch.rand(5, 4).half(), torch.zeros(5, dtype=torch.int32)).ndim


def test_more_images_than_a_batch_have_the_radii_of_single_ones():
    """
    They differ by the score error, which is bounded for the largest of the given images.
    """
    network = nn.Sequential(Flatten(), AOLLinear(12, 3))
    images = torch.rand(600, 3, 2, 2)
    labels = network(images).argmax(1)
    found = certified_radius(network, images, labels)
    alone = [
        certified_radius(network, one[None], label[None])
        for one, label in zip(images, labels, strict=True)
    ]

    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-9, atol=1e-12)
    assert certified_radius(network, images[:0], labels[:0]).shape == (0,)


def test_an_empty_network_has_the_radii_of_its_images():
    """
    It is the identity, whose scores are the pixels.
    """
    images = torch.tensor([[1.0, 0.0, 3.0], [1.0, 0.0, 3.0], [2.0, 2.0, 0.0]])
    found = certified_radius(nn.Sequential(), images, torch.tensor([2, 0, 0]))

    assert found.tolist() == pytest.approx([2**0.5, 0, 0], rel=1e-8)
    assert prove_bound(nn.Sequential(), [], (3,)).score_error == pytest.approx(
        certify_network(nn.Sequential(), (3,)).score_error, rel=1e-8, abs=0
    )


def test_images_and_network_are_unchanged():
    network = nn.Sequential(nn.ReLU(inplace=True), AOLLinear(4, 3))
    images = normal(5, 4).requires_grad_()
    before = images.detach().clone()
    found = certified_radius(network, images, torch.zeros(5, dtype=torch.int64))

    assert torch.equal(images, before)
    assert not found.requires_grad
    assert network[1].weight.dtype == torch.float32
    assert network[1]._kept is None
    assert network[0].inplace


def test_a_constant_network_keeps_its_class_everywhere():
    layer = diagonal(0.0, 0.0, bias=[1.0, 0.0])
    found = certified_radius(layer, torch.ones(1, 2), torch.tensor([0]))

    assert found > 1e50


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.uint8), torch.zeros(2).long(), r"got torch\.uint8 .*/ 255"),
        (torch.zeros(4), torch.zeros(4).long(), r"shape \(N, \.\.\.\), got torch.float32 \(4,\)"),
        (torch.zeros(2, 4), torch.zeros(3).long(), r"one integer per image, \(2,\), got .*\(3,\)"),
        (torch.zeros(2, 4), torch.zeros(2, 3).long(), r"got torch\.int64 \(2, 3\)"),
        (torch.zeros(2, 4), torch.zeros(2), r"got torch\.float32 \(2,\)"),
        (torch.full((2, 4), math.nan), torch.zeros(2).long(), "its scores are not finite"),
        (torch.zeros(2, 5), torch.zeros(2).long(), r"\(AOLLinear\) cannot take an input of"),
    ],
)
def test_invalid_batches_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        certified_radius(nn.Sequential(AOLLinear(4, 3)), images, labels)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(AOLLinear(4, 1)), r"output has shape \(2, 1\); .*two classes"),
        (nn.Sequential(AOLConv2d(4, 3, 1)), "cannot take"),
        (nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.GELU())), r"layer 1\.0 \(GELU\)"),
        (nn.Sequential(nn.Dropout(), nn.Linear(4, 3)), r"layer 0 \(Dropout\) .*\.eval\(\)"),
    ],
)
def test_networks_without_a_proof_or_classes_are_refused(network, message):
    with pytest.raises(ValueError, match=message):
        certified_radius(network, torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))


def test_weights_that_are_not_finite_are_refused():
    layer = diagonal(math.inf, 1.0)

    with pytest.raises(ValueError, match="its weights are not finite"):
        certified_radius(layer, torch.ones(1, 2), torch.tensor([0]))
