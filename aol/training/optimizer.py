"""SGD as the authors ran it, and the arithmetic of training."""

import torch
from torch import nn

from aol.config import Precision, TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """Return SGD with weight decay on the raw kernels and not on the biases.

    Keras adds `l2 * sum(w**2)` to the loss, whose gradient is torch's decay of `2 * l2`.
    """
    kernels = [parameter for name, parameter in model.named_parameters() if "weight" in name]
    biases = [parameter for name, parameter in model.named_parameters() if "bias" in name]
    settings = config.optimizer
    return torch.optim.SGD(
        [
            {"params": kernels, "weight_decay": 2 * settings.l2},
            {"params": biases, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.SGD, rate: float) -> None:
    """Change the learning rate as Keras does, whose momentum contains the rate of its gradients."""
    for group in optimizer.param_groups:
        if group["lr"] == rate:
            continue
        for parameter in group["params"]:
            momentum = optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                momentum.mul_(group["lr"] / rate)
        group["lr"] = rate


def set_training_precision(precision: Precision) -> None:
    """Allow TF32 for the float32 products of training on CUDA, except in `float32` itself.

    In bf16 these are the rescaling's: in full float32 they would take longer than all the others.
    """
    allow_tf32(precision != "float32")


def allow_tf32(allowed: bool) -> None:
    """Set whether CUDA may round the inputs of float32 products to TF32."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
