"""Chains of modules: which have a proven bound, and the proof of a whole chain, layer by layer.

A **chain** is any nest of `nn.Sequential`. Its leaves are of four kinds:

- AOL layers, among them those of `aol.parametrize`;
- `nn.Linear` and `nn.Conv2d`, whose bound is proven from their weights;
- the modules of `aol.certification.rules`, whose bound follows from their options;
- modules that declare their bound by a method `lipschitz_bound()`.

Everything else is refused: it has no known bound.

A module is recognised by its class's `forward`; see `aol.layers.parametrization.forward_of`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from aol.certification.bounds import Reach, upper_bound, weighted_bound
from aol.certification.certificate import Kind
from aol.certification.rules import RULES, UnprovenError
from aol.layers.modules import AOLConv2d, AOLLinear, in_float64
from aol.layers.parametrization import (
    forward_of,
    is_plain,
    label,
    option_problem,
    replaced_method,
    rescaling_of,
    weight_problem,
)

LARGEST_DIVISOR = 1e100
AOL_FORWARDS = (AOLLinear.forward, AOLConv2d.forward)
ADVICE = (
    "use the modules that aol.certify_network lists, or give it a method lipschitz_bound() that "
    "returns a bound you have proven"
)


@dataclass(frozen=True)
class ProvenLayer:
    """A layer in its place: the bound of its norm, and the reach of its output.

    `kind` is None for a module that never stretches a difference, whose bound is exactly 1.
    `shape` is that of its input, with one image.
    """

    name: str
    module: nn.Module
    shape: torch.Size
    kind: Kind | None
    upper: float
    reach: Reach


def check_chain(network: nn.Module) -> None:
    """Raise one ValueError that names every module of `network` without a bound."""
    found: dict[int, str] = {}
    for name, module in leaves(network):
        where = label(name, module)
        if (problem := _problem(module)) is not None:
            found.setdefault(id(module), f"{where} {problem}")
        elif is_plain(module) and (problem := option_problem(module)) is not None:
            found.setdefault(id(module), f"{where}: {problem}")
    if found:
        raise ValueError("; ".join(found.values()))


def leaves(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a chain with their dotted names, in the order of a pass.

    One that occurs twice is there twice. Any module but a plain `nn.Sequential` is a leaf.
    """
    if forward_of(module) is not nn.Sequential.forward or _hooked(module):
        yield name, module
        return
    for key, child in module._modules.items():
        assert child is not None  # noqa: S101 - nn.Sequential cannot hold None
        yield from leaves(child, f"{name}.{key}" if name else key)


def exact_copy(network: nn.Module) -> nn.Module:
    """Return a float64 copy that applies the weights of `network` and changes no input in place."""
    exact = in_float64(network)
    for module in exact.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    return exact


def device_of(network: nn.Module) -> torch.device:
    """Return the device of the first parameter, the CPU without parameters."""
    return next((one.device for one in network.parameters()), torch.device("cpu"))


@torch.no_grad()
def prove_chain(
    network: nn.Module,
    shape: Sequence[int],
    reach: Reach,
    hints: Iterable[Tensor] | None = None,
) -> list[ProvenLayer]:
    """Return the proof of every layer of a float64 chain, in the order of a pass.

    `shape` is that of one image, `reach` what is known of the images. `hints` are the divisors of
    the plain layers, in their order; without them they are searched for.

    Raises: ValueError for a module without a bound, divisors that prove nothing, or an input that
        a layer cannot take.
    """
    check_chain(network)
    rest = None if hints is None else iter(hints)
    x = torch.zeros(1, *shape, dtype=torch.float64, device=device_of(network))
    proven = []
    for name, module in leaves(network):
        y = _output(name, module, x)
        kind, upper, reach = _prove(name, module, (x, y), reach, rest)
        proven.append(ProvenLayer(label(name, module), module, x.shape, kind, upper, reach))
        x = y
    return proven


def _output(name: str, module: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a layer. Raises: ValueError if it cannot take this input."""
    where = f"{label(name, module)} cannot take an input of shape {tuple(x.shape[1:])}"
    if (needed := _needed_shape(module, x.shape[1:])) is not None:
        raise ValueError(f"{where}; it needs {needed}")
    try:
        y: Tensor = module(x)
    except (IndexError, RuntimeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
    return y


def _needed_shape(module: nn.Module, shape: Sequence[int]) -> str | None:
    """Return the shape that an input needs if `shape` is another, None if it fits or anything may.

    Torch alone would take some inputs of fewer dimensions for a single image without a batch.
    """
    if (weighted := _weights(module)) is not None:
        inputs, is_convolution = weighted[0].shape[1], weighted[0].ndim > 2
        if is_convolution:
            fits, needed = len(shape) == 3 and shape[0] == inputs, f"({inputs}, height, width)"
        else:
            fits, needed = bool(shape) and shape[-1] == inputs, f"(..., {inputs})"
        return None if fits else needed
    if (rule_of := RULES.get(forward_of(module))) is None:
        return None
    fewest, most = rule_of(module).dimensions
    if fewest <= len(shape) <= most:
        return None
    return "(channels, height, width)" if most == 3 else f"{fewest} dimensions or more"


def _prove(
    name: str,
    module: nn.Module,
    example: tuple[Tensor, Tensor],
    reach: Reach,
    hints: Iterator[Tensor] | None,
) -> tuple[Kind | None, float, Reach]:
    """Return the kind and the bound of a layer, and the reach of its output.

    `example` is one input with its output.
    """
    x, y = example
    if (rule_of := RULES.get(forward_of(module))) is not None:
        rule = rule_of(module)
        return "plain" if rule.upper != 1 else None, rule.upper, rule.after(reach, y[0].numel())
    weighted = _weights(module)
    if weighted is None:
        upper = _declared(name, module)
        size = float(y.norm()) + upper * (float(x.norm()) + reach.size)
        return "declared", upper, Reach(size, upper * reach.error)
    weight, bias, raw = weighted
    if raw is not None or hints is None:
        upper = upper_bound(weight, raw)
    else:
        q = next(hints, None)
        if q is None or not _fit(q, weight.shape[1]):
            raise ValueError(f"{label(name, module)} has no positive divisor per input channel")
        upper = weighted_bound(weight, q.to(weight))
    kind: Kind = "plain" if raw is None else "aol"
    return kind, upper, reach.after(weight, bias, upper, y[0].numel() // weight.shape[0])


def _weights(module: nn.Module) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """Return the applied weight, the bias and an AOL layer's raw parameter, None if it has none."""
    if isinstance(module, AOLLinear | AOLConv2d) and forward_of(module) in AOL_FORWARDS:
        return module.rescaled(), module.bias, module.weight
    if is_plain(module):
        assert isinstance(module, nn.Linear | nn.Conv2d)  # noqa: S101 - for its type
        rescaling = rescaling_of(module)
        return module.weight, module.bias, None if rescaling is None else rescaling.original
    return None


def _declared(name: str, module: nn.Module) -> float:
    upper = float(module.lipschitz_bound())  # type: ignore[operator]
    if not 0 <= upper < math.inf:
        raise ValueError(
            f"{label(name, module)}: lipschitz_bound() returned {upper}; it has to be a finite "
            "number that is not negative"
        )
    return upper


def _problem(module: nn.Module) -> str | None:
    """Return why a module has no bound, None if it has one."""
    forward = forward_of(module)
    if _hooked(module):
        return "has forward hooks, which can change its output; remove them"
    if (name := replaced_method(module)) is not None:
        return f"has an attribute {name} of its own, which can change its output; delete it"
    if is_parametrized(module) and rescaling_of(module) is None:
        return (
            "is parametrized by something else than aol.parametrize; bake that in with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    if is_plain(module):
        return weight_problem(module)
    if forward in RULES:
        try:
            RULES[forward](module)
        except UnprovenError as reason:
            return f"has no known Lipschitz bound: {reason}"
        return None
    if forward in AOL_FORWARDS or callable(getattr(module, "lipschitz_bound", None)):
        return None
    return f"has no known Lipschitz bound: {ADVICE}"


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fit(q: Tensor, inputs: int) -> bool:
    """Return whether there is a number per input channel, none so extreme that it underflows."""
    inside = (q > 1 / LARGEST_DIVISOR) & (q < LARGEST_DIVISOR)
    return q.shape == (inputs,) and bool(inside.all())
