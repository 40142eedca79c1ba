"""Chains of modules: which have a proven bound, and the proof of a whole chain, layer by layer.

A **chain** is any nest of `nn.Sequential`. Its leaves are of four kinds: AOL layers, among them
those of `aol.parametrize`; `nn.Linear` and `nn.Conv2d`, whose bound is proven from their weights;
the modules of `RULES`, whose bound is known from their options; and modules that declare theirs by
a method `lipschitz_bound()`. Everything else is refused: nothing is known of it.

A module is recognised by its class's `forward`, so that a subclass with another one is not taken
for what it inherits from.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from aol.certification.bounds import EPS, Reach, upper_bound, weighted_bound
from aol.certification.certificate import Kind
from aol.layers import plain
from aol.layers.modules import AOLConv2d, AOLLinear, MaxMin, in_float64
from aol.layers.parametrization import is_plain, label, plain_problem, rescaling_of

LIBRARY = 4 * EPS  # relative error of a function such as tanh, some units in the last place
LARGEST_JUMP = 1e-8  # of nn.Softplus at its threshold; 2e-9 with the defaults of torch
LARGEST_DIVISOR = 1e100


class UnprovenError(ValueError):
    """Raised when options of a module have no proven bound; holds the reason."""


@dataclass(frozen=True)
class Rule:
    """Facts about a module without weights, in L2.

    `upper` bounds how much it stretches a difference, `rounding` the error of float64 per length
    of an input, `at_zero` the size of each output entry for zeros, `entry_error` its error.
    """

    upper: float = 1.0
    rounding: float = 0.0
    at_zero: float = 0.0
    entry_error: float = 0.0

    def after(self, reach: Reach, entries: int) -> Reach:
        """Return the reach behind the module, whose output has so many entries."""
        given, root = reach.size + reach.error, math.sqrt(entries)
        error = self.upper * reach.error + self.rounding * given + self.entry_error * root
        return Reach(self.upper * reach.size + self.at_zero * root, error)


def _exact(module: nn.Module) -> Rule:
    """Move, drop or order values: no difference grows, nothing is rounded."""
    return Rule()


def _constant_pad(module: Any) -> Rule:
    """Add entries that are the same for every input; nn.ZeroPad2d is the case of zeros."""
    return Rule(at_zero=abs(float(module.value)))


def _flatten(module: nn.Flatten) -> Rule:
    if module.start_dim < 1:
        raise UnprovenError(f"start_dim is 1 or more, got {module.start_dim}: images stay apart")
    return Rule()


def _dropout(module: nn.Dropout) -> Rule:
    """Do nothing in evaluation; in training the rest is scaled up by 1 / (1 - p)."""
    if module.training:
        raise UnprovenError("is in training mode, where it is random; call .eval() on the network")
    return Rule()


def _leaky_relu(module: nn.LeakyReLU) -> Rule:
    """Multiply each entry by 1 or the slope: the larger size of both bounds the derivative."""
    if not abs(module.negative_slope) <= 1:
        raise UnprovenError(f"the slope is between -1 and 1, got {module.negative_slope}")
    return Rule(rounding=EPS)


def _tanh(module: nn.Tanh) -> Rule:
    """Map each entry with a derivative in (0, 1] and |tanh x| <= |x|."""
    return Rule(rounding=LIBRARY)


def _softplus(module: nn.Softplus) -> Rule:
    """Map each entry with a derivative in (0, 1), that of log(1 + exp(beta x)) / beta.

    Above its threshold torch returns x itself, which is off by log(1 + exp(-threshold)) / beta:
    an error of the entry, and of more than rounding, so that it has to be small.
    """
    beta, threshold = module.beta, module.threshold
    if not 0 < beta < math.inf or not threshold > 0:
        raise UnprovenError(f"beta and threshold are above 0, got {beta} and {threshold}")
    jump = math.log1p(math.exp(-threshold)) / beta
    if not jump <= LARGEST_JUMP:
        raise UnprovenError(f"it jumps by {jump:.3g} at its threshold; raise the threshold to 20")
    # beta x, exp, log1p and the division are off by LIBRARY each, exp by |beta x| times more.
    at_zero = math.log(2) / beta
    return Rule(rounding=4 * LIBRARY, at_zero=at_zero, entry_error=jump + 4 * LIBRARY * at_zero)


def _avg_pool(module: nn.AvgPool2d) -> Rule:
    """Average windows of n entries that share none: by Cauchy and Schwarz a norm of 1 / sqrt(n)."""
    _check_windows(module)
    if module.ceil_mode or module.divisor_override is not None:
        raise UnprovenError("ceil_mode and divisor_override have no proven bound; leave them out")
    rows, columns = _pair(module.kernel_size)
    count = rows * columns
    return Rule(upper=1 / math.sqrt(count) * (1 + EPS), rounding=EPS * (count + 1))


def _max_pool(module: nn.MaxPool2d) -> Rule:
    """Take the largest entry of windows that share none.

    Two largest values differ by no more than the entries of the window do at most, which is no
    more than the length of the difference there.
    """
    _check_windows(module)
    if _pair(module.dilation) != (1, 1) or module.return_indices:
        raise UnprovenError("dilation and return_indices have no proven bound; leave them out")
    return Rule()


def _check_windows(module: nn.AvgPool2d | nn.MaxPool2d) -> None:
    sizes, strides = _pair(module.kernel_size), _pair(module.stride)
    if any(stride < size for stride, size in zip(strides, sizes, strict=True)):
        raise UnprovenError(f"windows of {sizes} overlap at stride {strides}; use stride {sizes}")
    if _pair(module.padding) != (0, 0):
        raise UnprovenError("padding has no proven bound; put nn.ZeroPad2d before it")


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


RULES: dict[Callable[..., Any], Callable[[Any], Rule]] = {
    MaxMin.forward: _exact,
    plain.MaxMin.forward: _exact,
    plain.ConcatenationPooling.forward: _exact,
    plain.FirstChannels.forward: _exact,
    plain.Flatten.forward: _exact,
    nn.Identity.forward: _exact,
    nn.ReLU.forward: _exact,
    nn.PixelUnshuffle.forward: _exact,
    nn.ZeroPad2d.forward: _constant_pad,
    nn.Flatten.forward: _flatten,
    nn.Dropout.forward: _dropout,
    nn.LeakyReLU.forward: _leaky_relu,
    nn.Tanh.forward: _tanh,
    nn.Softplus.forward: _softplus,
    nn.AvgPool2d.forward: _avg_pool,
    nn.MaxPool2d.forward: _max_pool,
}
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
        if (problem := _problem(module)) is not None:
            found.setdefault(id(module), f"{label(name, module)} {problem}")
    if found:
        raise ValueError("; ".join(found.values()))


def leaves(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a chain with their dotted names, in the order of a pass.

    One that occurs twice is there twice. A module that is no plain `nn.Sequential` is a leaf.
    """
    if type(module).forward is not nn.Sequential.forward or _hooked(module):
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
        try:
            y = module(x)
        except RuntimeError as error:
            where = f"{label(name, module)} cannot take an input of shape {tuple(x.shape[1:])}"
            raise ValueError(f"{where}: {error}") from error
        kind, upper, reach = _prove(name, module, (x, y), reach, rest)
        proven.append(ProvenLayer(label(name, module), module, x.shape, kind, upper, reach))
        x = y
    return proven


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
    if (rule_of := RULES.get(type(module).forward)) is not None:
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
    return kind, upper, reach.after(weight, bias, upper, y.shape[2:].numel())


def _weights(module: nn.Module) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """Return the applied weight, the bias and an AOL layer's raw parameter, None if it has none."""
    if isinstance(module, AOLLinear | AOLConv2d) and type(module).forward in AOL_FORWARDS:
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
    forward = type(module).forward
    if _hooked(module):
        return "has forward hooks, which can change its output; remove them"
    if is_parametrized(module) and rescaling_of(module) is None:
        return (
            "is parametrized by something else than aol.parametrize; bake that in with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    if is_plain(module):
        return plain_problem(module)
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
