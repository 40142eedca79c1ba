"""Almost-Orthogonal Layers in PyTorch: layers, models, data, training and certificates.

The names below are imported when they are first used, so `import aol` does not import torch.
Independent of scheduling, tracking and storage. Source: arXiv:2208.03160.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aol.certification.certificate import LayerBound, LipschitzCertificate
    from aol.certification.lipschitz import certify_network
    from aol.certification.radius import certified_radius
    from aol.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
    from aol.errors import AOLError
    from aol.layers.initialisers import identity_, repeated_orthogonal_
    from aol.layers.modules import AOLConv2d, AOLLinear, MaxMin, rescaled_once
    from aol.layers.parametrization import AOLRescale, parametrize, remove
    from aol.layers.plain import ConcatenationPooling, FirstChannels, Flatten
    from aol.models.architectures import build_model
    from aol.ops.rescale import rescale_conv, rescale_dense
    from aol.training.loss import offset_cross_entropy
    from aol.training.trainer import Trainer

__all__ = [
    "AOLConv2d",
    "AOLError",
    "AOLLinear",
    "AOLRescale",
    "ConcatenationPooling",
    "DataConfig",
    "FirstChannels",
    "Flatten",
    "LayerBound",
    "LipschitzCertificate",
    "LossConfig",
    "MaxMin",
    "ModelConfig",
    "OptimizerConfig",
    "TrainConfig",
    "Trainer",
    "build_model",
    "certified_radius",
    "certify_network",
    "identity_",
    "offset_cross_entropy",
    "parametrize",
    "remove",
    "repeated_orthogonal_",
    "rescale_conv",
    "rescale_dense",
    "rescaled_once",
]

_PLACES = {
    "certification.certificate": ("LayerBound", "LipschitzCertificate"),
    "certification.lipschitz": ("certify_network",),
    "certification.radius": ("certified_radius",),
    "config": ("DataConfig", "LossConfig", "ModelConfig", "OptimizerConfig", "TrainConfig"),
    "errors": ("AOLError",),
    "layers.initialisers": ("identity_", "repeated_orthogonal_"),
    "layers.modules": ("AOLConv2d", "AOLLinear", "MaxMin", "rescaled_once"),
    "layers.parametrization": ("AOLRescale", "parametrize", "remove"),
    "layers.plain": ("ConcatenationPooling", "FirstChannels", "Flatten"),
    "models.architectures": ("build_model",),
    "ops.rescale": ("rescale_conv", "rescale_dense"),
    "training.loss": ("offset_cross_entropy",),
    "training.trainer": ("Trainer",),
}
_MODULES = {name: f"aol.{place}" for place, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'aol' has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_MODULES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
