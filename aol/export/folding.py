"""A trained network in plain torch layers, the rescaling folded into their weights.

What is left is `nn.Conv2d`, `nn.Linear` and the few layers without weights of `aol.layers.plain`,
so that it can be written to a file and used where this package is not.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from aol.certification import bounds
from aol.layers import modules as layers
from aol.layers import plain as network
from aol.layers.modules import AOLConv2d, AOLLinear


def fold_network(model: nn.Sequential, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A network with the scores of `model`: rescaled in float64, then rounded to `dtype`.

    Raises: TypeError for a layer that has no plain one.
    """
    exact = deepcopy(model).double().eval().requires_grad_(False)
    chain = nn.Sequential(*(_plain(layer) for layer in exact))
    return chain.to(dtype).eval().requires_grad_(False)


def _plain(layer: nn.Module) -> nn.Module:
    """The layer of `aol.layers.plain` or of torch that does the same."""
    match layer:
        case AOLConv2d() | AOLLinear():
            return _folded(layer)
        case layers.MaxMin():
            return network.MaxMin()
        case layers.ConcatenationPooling():
            return network.ConcatenationPooling(layer.rows, layer.columns)
        case network.FirstChannels() | network.Flatten():
            return layer
    raise TypeError(f"{type(layer).__name__} has no plain layer; give it one in aol.layers.plain")


def _folded(layer: AOLConv2d | AOLLinear) -> nn.Module:
    weight = layer.rescaled()
    outputs, inputs, *size = weight.shape
    plain: nn.Conv2d | nn.Linear = nn.Linear(inputs, outputs, device="meta")
    if isinstance(layer, AOLConv2d):
        kernel = (size[0], size[1])
        plain = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            padding=layer.padding,
            dilation=layer.dilation,
            device="meta",
        )
    plain.weight, plain.bias = nn.Parameter(weight.contiguous()), nn.Parameter(layer.bias)
    return plain


def network_divisors(model: nn.Sequential) -> list[Tensor]:
    """What each layer with weights divides its input channels by: numbers for a tight bound."""
    exact = deepcopy(model).double().requires_grad_(False)
    weighted = [layer for layer in exact if isinstance(layer, AOLConv2d | AOLLinear)]
    return [bounds.divisors(layer.rescaled(), layer.weight) for layer in weighted]


def describe_layers(plain: nn.Sequential) -> list[dict[str, Any]]:
    """The layers of a plain network, as `aol.layers.plain.build` takes them."""
    return [{"layer": type(layer).__name__, **_arguments(layer)} for layer in plain]


def _arguments(layer: nn.Module) -> dict[str, Any]:
    match layer:
        case nn.Conv2d():
            return {
                "in_channels": layer.in_channels,
                "out_channels": layer.out_channels,
                "kernel_size": list(layer.kernel_size),
                "padding": layer.padding,
                "dilation": list(layer.dilation),
            }
        case nn.Linear():
            return {"in_features": layer.in_features, "out_features": layer.out_features}
        case network.ConcatenationPooling():
            return {"rows": layer.rows, "columns": layer.columns}
        case network.FirstChannels():
            return {"channels": layer.channels}
    return {}
