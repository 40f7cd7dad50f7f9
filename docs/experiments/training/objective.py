"""The training objective: every text against every scene, several texts true of one scene."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def pair_loss(
    images: torch.Tensor,
    texts: torch.Tensor,
    positive: torch.Tensor,
    *,
    scale: torch.Tensor,
    bias: torch.Tensor,
    contrast: float = 0.2,
    margin: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sigmoid loss on all pairs + ``contrast`` x InfoNCE with several positives.

    With the logits l = scale cos and the sign z = 1 for a true text, -1 otherwise, the first is
    mean_images sum_texts -log sigmoid(z (l + bias)) (Zhai et al., Sigmoid Loss for Language Image
    Pre-Training). The second is the mean over the true pairs of -log softmax(l), over texts for
    each scene and over scenes for each text, averaged.

    Args:
        images: (B, D) unit rows.
        texts: (T, D) unit rows.
        positive: (B, T) bool.
        scale: (), positive.
        bias: ().
        contrast: the weight of the second loss.
        margin: (B, T), added to the logits of false pairs in the first loss, which are so pushed
            further down.

    Returns:
        () the loss.
    """
    logits = scale * images @ texts.T  # (B, T)
    signs = positive.float() * 2 - 1
    shifted = logits + bias if margin is None else logits + bias + margin * ~positive
    pairs = -F.logsigmoid(signs * shifted).sum(dim=1).mean()
    weights = positive.float()
    by_image = _spread(logits, weights)
    by_text = _spread(logits.T, weights.T)
    return pairs + contrast * (by_image + by_text) / 2


def _spread(logits: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """-log softmax, averaged over the true entries of a row, then over the rows with any."""
    counts = weights.sum(dim=1)
    rows = -(F.log_softmax(logits, dim=1) * weights).sum(dim=1) / counts.clamp(min=1)
    return rows.sum() / (counts > 0).sum().clamp(min=1)


def one_cycle(step: int, steps: int, *, peak: float, warm: float = 0.1) -> float:
    """Learning rate of a step: linear to the peak in the first tenth, then a cosine to 0.

    >>> one_cycle(100, 1000, peak=1.0)
    1.0
    """
    start = max(1, round(warm * steps))
    if step < start:
        return peak * (step + 1) / (start + 1)
    share = torch.tensor((step - start) / max(1, steps - start))
    return float(peak * 0.5 * (1 + torch.cos(torch.pi * share)))
