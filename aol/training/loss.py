"""The paper's training loss."""

import torch
import torch.nn.functional as F
from torch import Tensor


def offset_cross_entropy(
    scores: Tensor, labels: Tensor, *, offset: float, temperature: float
) -> Tensor:
    """Return each row's cross-entropy after `offset` is subtracted from its true class's score.

    Scores are divided by `temperature` before the softmax and the loss is multiplied by it.
    `offset` is in units of the scores.

    Shapes: scores (N, C), labels (N,) int64 -> (N,).
    Source: arXiv:2208.03160, the loss of its experiments; `metrics/offset_xent_from_scores.py` of
        the authors' code.
    """
    penalty = torch.zeros_like(scores).scatter_(1, labels[:, None], offset)
    return F.cross_entropy((scores - penalty) / temperature, labels, reduction="none") * temperature
