"""The paper's training loss. Source: `metrics/` of the authors' code, OffsetXent."""

import torch
import torch.nn.functional as F
from torch import Tensor


def offset_cross_entropy(
    scores: Tensor, labels: Tensor, *, offset: float, temperature: float
) -> Tensor:
    """Return each row's cross-entropy after `offset` is subtracted from its true class's score.

    Scores are divided by `temperature` before the softmax and the loss is multiplied by it.
    Shapes: scores (N, C), labels (N,) int64 -> (N,).
    """
    penalty = torch.zeros_like(scores).scatter_(1, labels[:, None], offset)
    return F.cross_entropy((scores - penalty) / temperature, labels, reduction="none") * temperature
