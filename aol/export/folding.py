"""A trained network in plain torch layers, the rescaling folded into their weights.

It consists of `nn.Conv2d`, `nn.Linear` and the few layers without weights of `aol.layers.plain`, so
that it can be written to a file and used where this package is not installed.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from aol.certification import bounds
from aol.layers import plain
from aol.layers.modules import AOLConv2d, AOLLinear


def fold_network(model: nn.Sequential, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Return a plain network with the scores of `model`: rescaled in float64, cast to `dtype`.

    Raises: TypeError for a layer that has no plain one.
    """
    exact = deepcopy(model).double().eval().requires_grad_(False)
    chain = nn.Sequential(*(_plain(layer) for layer in exact))
    return chain.to(dtype).eval().requires_grad_(False)


def _plain(layer: nn.Module) -> nn.Module:
    """Return the layer of `aol.layers.plain` or of torch that computes the same."""
    match layer:
        case AOLConv2d() | AOLLinear():
            return _folded(layer)
        case plain.MaxMin():
            return plain.MaxMin()
        case plain.ConcatenationPooling() | plain.FirstChannels() | plain.Flatten():
            return layer
    raise TypeError(f"{type(layer).__name__} has no plain layer; give it one in aol.layers.plain")


def _folded(layer: AOLConv2d | AOLLinear) -> nn.Module:
    weight = layer.rescaled()
    outputs, inputs, *size = weight.shape
    folded: nn.Conv2d | nn.Linear = nn.Linear(inputs, outputs, bias=False, device="meta")
    if isinstance(layer, AOLConv2d):
        kernel = (size[0], size[1])
        folded = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            padding=layer.padding,
            dilation=layer.dilation,
            bias=False,
            device="meta",
        )
    folded.weight = nn.Parameter(weight.contiguous())
    folded.bias = layer.bias
    return folded


def network_divisors(model: nn.Sequential) -> list[Tensor]:
    """Return the divisors of each AOL layer's input channels: numbers for a tight bound."""
    exact = deepcopy(model).double().requires_grad_(False)
    weighted = [layer for layer in exact if isinstance(layer, AOLConv2d | AOLLinear)]
    return [bounds.divisors(layer.rescaled(), layer.weight) for layer in weighted]


def describe_layers(network: nn.Sequential) -> list[dict[str, Any]]:
    """Return the layers of a plain network as `aol.layers.plain.build` takes them."""
    return [{"layer": type(layer).__name__, **_arguments(layer)} for layer in network]


def _arguments(layer: nn.Module) -> dict[str, Any]:
    match layer:
        case nn.Conv2d():
            padding = layer.padding if isinstance(layer.padding, str) else list(layer.padding)
            return {
                "in_channels": layer.in_channels,
                "out_channels": layer.out_channels,
                "kernel_size": list(layer.kernel_size),
                "padding": padding,
                "dilation": list(layer.dilation),
                **_without_bias(layer),
            }
        case nn.Linear():
            size = {"in_features": layer.in_features, "out_features": layer.out_features}
            return {**size, **_without_bias(layer)}
        case plain.ConcatenationPooling():
            return {"rows": layer.rows, "columns": layer.columns}
        case plain.FirstChannels():
            return {"channels": layer.channels}
    return {}


def _without_bias(layer: nn.Conv2d | nn.Linear) -> dict[str, bool]:
    return {} if layer.bias is not None else {"bias": False}
