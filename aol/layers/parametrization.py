"""The rescaling for existing networks: as a parametrization of `nn.Linear` and `nn.Conv2d`."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize as torch_parametrize

from aol.layers.modules import Rescaling, _RescaledLayer, find_unproven
from aol.ops.rescale import rescale_conv, rescale_convs, rescale_dense, rescale_denses

Module = TypeVar("Module", bound=nn.Module)

# Methods that a call passes through on its way to the weights, with the class that defines each.
PASSED: dict[str, type[nn.Module]] = {
    "__call__": nn.Module,
    "_call_impl": nn.Module,
    "__iter__": nn.Sequential,
    "_conv_forward": nn.Conv2d,
}


class AOLRescale(Rescaling):
    """The parametrization `raw -> rescaled` of a dense layer's or a convolution's weight.

    Shapes: (O, I) or (O, I, K, L) -> the same.
    Source: arXiv:2208.03160, theorem for dense layers and for convolutions; see
        `aol.ops.rescale`.
    """

    @staticmethod
    def _rescale(weight: Tensor) -> Tensor:
        return rescale_dense(weight) if weight.ndim == 2 else rescale_conv(weight)

    @staticmethod
    def _rescale_all(weights: Tensor) -> Tensor:
        return rescale_denses(weights) if weights.ndim == 3 else rescale_convs(weights)

    def forward(self, weight: Tensor) -> Tensor:
        return self.applied(weight)


def parametrize(module: Module) -> Module:
    """Make every `nn.Linear` and `nn.Conv2d` in `module`, itself included, 1-Lipschitz in L2.

    Their weights become raw parameters, `parametrizations.weight.original`, and the layers apply
    the rescaled ones, so their outputs change. AOL layers in between stay as they are. Layers
    without parameters are not looked at: `aol.certify_network` proves the network as a whole.

    A convolution may have any zero padding and any dilation. With stride 1 its output is the
    convolution of the whole plane, applied to the image continued by zeros and read on a window.
    Continuing by zeros keeps the length of an input, reading on a window shortens the output or
    keeps its length, and a padding only moves the edges of the window. Dilation spreads the taps,
    and every sum of the Gram kernel stays what it is. So the norm is at most that on the plane,
    which the theorem bounds by 1 after the rescaling.

    Returns `module`, changed in place: its class is then torch's `ParametrizedLinear` or alike.
    Raises: ValueError that names every module without a proof, before anything is changed.
    Source: arXiv:2208.03160, theorem for dense layers and for convolutions.
    """
    names: dict[int, str] = {}
    targets, problems = [], []
    for name, child in module.named_modules():
        if isinstance(child, _RescaledLayer) or "parametrizations" in name.split("."):
            continue
        problem = _problem(child)
        if problem is None and is_plain(child):
            other = names.setdefault(id(child.weight), name)
            if other == name:
                targets.append(child)
            else:
                problem = f"shares its weight with {other}; give each a weight of its own"
        if problem is not None:
            problems.append(f"{label(name, child)}: {problem}")
    if not problems and not targets:
        problems = ["there is no nn.Linear or nn.Conv2d in it, nothing to parametrize"]
    if problems:
        raise ValueError("parametrize: " + "; ".join(problems))
    for target in targets:
        torch_parametrize.register_parametrization(target, "weight", AOLRescale())
    return module


def remove(module: Module) -> Module:
    """Bake the rescaled weights into the layers that `parametrize` changed; undo nothing else.

    They are plain `nn.Linear` and `nn.Conv2d` again, with the same outputs, and training them on
    loses the bound.

    Returns `module`, changed in place.
    Raises: ValueError if no layer in it is parametrized by `parametrize`.
    Source: arXiv:2208.03160, theorem for dense layers and for convolutions, by which the rescaled
        weights have a norm of at most 1 on their own.
    """
    found = [child for child in module.modules() if rescaling_of(child) is not None]
    if not found:
        raise ValueError("remove: no module in it is parametrized by aol.parametrize")
    for child in found:
        torch_parametrize.remove_parametrizations(child, "weight", leave_parametrized=True)
    return module


def forward_of(module: nn.Module) -> Callable[..., Any] | None:
    """Return the `forward` of a module's class, None where it does not alone decide the output.

    That is so if a method of `PASSED` is overridden, or one is replaced on the module itself.
    """
    kind = type(module)
    for name, base in PASSED.items():
        if isinstance(module, base) and getattr(kind, name) is not getattr(base, name):
            return None
    return None if replaced_method(module) else kind.forward


def replaced_method(module: nn.Module) -> str | None:
    """Return the name of a method that an attribute of the module itself replaces, None without."""
    return next((name for name in ("forward", *PASSED) if name in vars(module)), None)


def is_plain(module: nn.Module) -> bool:
    """Return whether a module computes what `nn.Linear` or `nn.Conv2d` does; see `forward_of`."""
    return forward_of(module) in (nn.Linear.forward, nn.Conv2d.forward)


def rescaling_of(module: nn.Module) -> torch_parametrize.ParametrizationList | None:
    """Return the parametrization of a layer that `parametrize` changed, None for any other."""
    parametrizations = getattr(module, "parametrizations", None)
    if not torch_parametrize.is_parametrized(module) or parametrizations is None:
        return None
    if list(parametrizations) != ["weight"] or len(parametrizations.weight) != 1:
        return None
    found: torch_parametrize.ParametrizationList = parametrizations.weight
    return found if isinstance(found[0], AOLRescale) else None


def weight_problem(module: nn.Module) -> str | None:
    """Return why the weights of an `nn.Linear` or `nn.Conv2d` have no bound, None if they have."""
    own = list(module.parameters())
    if any(is_lazy(parameter) for parameter in own):
        return "has no weights yet; pass it one batch first"
    if not all(parameter.is_floating_point() for parameter in own):
        return "has weights that are not real numbers in floating point"
    return None


def option_problem(module: nn.Module) -> str | None:
    """Return a sentence on the options of an `nn.Conv2d` without a bound, None if all have one."""
    if not isinstance(module, nn.Conv2d):
        return None
    options = {name: getattr(module, name) for name in ("stride", "groups", "padding_mode")}
    return "; ".join(find_unproven(**options).values()) or None


def label(name: str, module: nn.Module) -> str:
    """Return the dotted name and the type of a module as errors and certificates print them."""
    kind = type(module).__name__
    return f"layer {name} ({kind})" if name else f"the module ({kind})"


def _problem(module: nn.Module) -> str | None:
    """Return why a module cannot be parametrized or left as it is, None if it can."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    if torch_parametrize.is_parametrized(module):
        return "is parametrized already"
    if not own:
        return None
    if (name := replaced_method(module)) is not None:
        return f"has an attribute {name} of its own; delete it"
    if not is_plain(module):
        return "has parameters or buffers of its own and no proven bound; take it out"
    if "weight" not in module._parameters:
        return "has a computed weight; remove the weight_norm or spectral_norm on it first"
    return weight_problem(module) or option_problem(module)
