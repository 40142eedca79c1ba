"""
The layers that AOL is compared with are what they are said to be, and their costs are written in
the form that claims read.
"""

import json

import pytest
import torch
from torch import nn

from aol.layers.modules import AOLConv2d, AOLLinear
from benchmarks import costs
from benchmarks.orthogonal import SLL, SOC, Cayley, CayleyConv
from orchestrator.spec.costs import read_costs


def singular_values(layer, shape):
    """
    Return the singular values of the Jacobian at a random input, in float64.
    """
    layer, image = layer.double(), torch.randn(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(layer, image)
    size = image.numel()
    return torch.linalg.svdvals(jacobian.reshape(size, size))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("layer", "shape"), [(Cayley(6), (6,)), (CayleyConv(4, 3), (4, 5, 5))], ids=["dense", "conv"]
)
def test_cayley_layers_are_orthogonal(layer, shape):
    values = singular_values(layer, shape)

    assert torch.allclose(values, torch.ones_like(values), atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"), [(SOC(6), (6,)), (SOC(4, 3), (4, 5, 5))], ids=["dense", "conv"]
)
def test_soc_layers_are_orthogonal_up_to_the_truncation_of_their_series(layer, shape):
    values = singular_values(layer, shape)

    assert torch.allclose(values, torch.ones_like(values), atol=1e-3)


@pytest.mark.parametrize(
    ("layer", "shape"), [(SLL(6), (6,)), (SLL(4, 3), (4, 5, 5))], ids=["dense", "conv"]
)
def test_sll_layers_never_stretch_and_are_not_the_identity(layer, shape):
    with torch.no_grad():
        layer.log_q.copy_(torch.randn_like(layer.log_q))
    values = singular_values(layer, shape)

    assert values.max() <= 1 + 1e-6
    assert values.min() < 0.9


@pytest.mark.parametrize("method", costs.METHODS)
def test_each_network_has_the_layers_of_its_method_and_ten_scores(method):
    network = costs.network(method, 0.125)
    kinds = {"AOL": (AOLLinear, AOLConv2d), "Cayley": (Cayley, CayleyConv), "SOC": SOC, "SLL": SLL}
    square = [
        module
        for module in network
        if (weight := getattr(module, "weight", None)) is not None
        and weight.shape[0] == weight.shape[1]
    ]

    assert len(square) > 20
    assert all(isinstance(module, kinds[method]) for module in square)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert isinstance(network, nn.Sequential)


def test_the_record_is_read_by_claims(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(costs, "RESULTS", tmp_path)
    monkeypatch.setattr(costs, "peak_mb", lambda method, width, batch: 100.0 + len(method))
    costs.main(["--width", "0.125", "--batch", "2", "--rounds", "2", "--repeats", "2", "--keep"])
    record = read_costs(tmp_path / "costs.json")

    assert tuple(record.methods) == costs.METHODS
    assert all(len(cost.step_ms) == 2 for cost in record.methods.values())
    assert "| AOL |" in capsys.readouterr().out
    assert "AOL-Small of width 0.125, batch 2" in json.dumps(record.setting)
