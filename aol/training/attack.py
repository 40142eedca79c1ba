"""An attack on a network: an upper bound of its robust accuracy beside the certified lower one."""

import torch
from torch import Tensor, nn

from aol.training.metrics import margins

STEP = 2.5  # total length of all steps, in radii


def projected_gradient_descent(
    model: nn.Module, images: Tensor, labels: Tensor, *, radius: float, steps: int = 50
) -> Tensor:
    """Return which images stay correctly classified under the attack, (N,) bool.

    Each step lowers the margin along its normalised gradient, and the change is projected to L2
    length `radius` and to pixels in [0, 1]. The attack starts at the image, so that it is the same
    every time. Images are judged exactly as they are after each step.

    Shapes: images (N, ...) in [0, 1], of the model's type; labels (N,) int64.
    Source: A. Madry et al., arXiv:1706.06083.
    """
    changed, robust = images, torch.ones(len(images), dtype=torch.bool, device=images.device)
    for step in range(steps + 1):
        changed = changed.detach().requires_grad_(step < steps)
        found = margins(model(changed), labels)
        robust &= found.detach() > 0
        if step == steps or not bool(robust.any()):
            break
        (gradient,) = torch.autograd.grad(found.sum(), changed)
        direction = gradient / _length(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
        change = changed.detach() - STEP * radius / steps * direction - images
        change = change * (radius / _length(change).clamp(min=radius))
        changed = (images + change).clamp(0, 1)
    return robust


def _length(change: Tensor) -> Tensor:
    """Return the L2 length of each image's change, in a shape that divides it."""
    length: Tensor = torch.linalg.vector_norm(change.flatten(1), dim=1)
    return length.reshape(-1, *[1] * (change.ndim - 1))
