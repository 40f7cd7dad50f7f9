"""AttentionGradCam: Grad-CAM on the last attention of a vision transformer."""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from ._attention import all_rows, read_row, weighted, weighted_rows
from ._base import ViTAttribution
from ._call import Call, Computed
from ._engine import LastGradient, last_gradient

Weights = Literal["elementwise", "pooled"]


@final
class AttentionGradCam(ViTAttribution):
    r"""Grad-CAM for vision transformers: the last layer's attention, weighted with its gradient.

    .. math:: L = E_h[(\nabla A_n \odot A_n)^+][CLS, patches]

    with ``weights="elementwise"`` (the default, the form of Mamooler's code), and

    .. math:: L = \bigl(E_h[g_h \, A_{n,h}]\bigr)^+[CLS, patches], \quad
              g_h = \text{mean of } \nabla A_{n,h}[CLS, patches]

    with ``weights="pooled"`` (the form of Chefer et al., to which Mamooler's text refers: the
    gradient is one number per head, and the ReLU comes after the mean over heads).

    Where the gradient leaves row CLS empty, as with mean pooling, the mean of the patches' rows
    takes its place. In a tower with a pooling head (SigLIP, PE-Core) the last attention is the
    head's, which has one row, that of its query. The map is non-negative; the negative map is the
    map of ``-target``. It is the last term of :class:`LastGradAttention`.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391); Chefer et al. 2021 (arXiv:2103.15679).
    """

    name = "attention-grad-cam"
    towers = ("vit", "text")

    @override
    def _compute(self, call: Call, *, weights: Weights = "elementwise") -> Computed:
        last = last_gradient(self._tower, call)
        if last.output is not None:
            maps = self._general(last, weights)
        elif weights == "elementwise":
            maps = weighted_rows(last.row, last.attention[None])[0]
        else:
            patches = last.row[..., self._tower.span]
            pooled = patches.mean(-1, keepdim=True)  # (K', B, H, 1)
            maps = (pooled * last.attention).mean(2).clamp(min=0)
        return last.run.computed(maps)

    def _general(self, last: LastGradient, weights: Weights) -> Tensor:
        """The same from whole matrices, for a gradient that has more than the CLS row."""
        layer, kept = self._tower.layers[-1], last.run.record.layers[len(self._tower.layers) - 1]
        attention, prefix = all_rows(layer, kept), self._tower.prefix  # (B, H, s, s)
        maps = []
        for start, gradient in last.matrices(self._tower):
            if weights == "elementwise":
                maps.append(read_row(start, weighted(gradient, attention, dim=1)))
            else:
                row = (start.to(gradient)[:, None, :, None] * gradient).sum(2)  # (B, H, s)
                pooled = row[..., prefix:].mean(-1)[..., None, None]  # (B, H, 1, 1)
                maps.append(read_row(start, (pooled * attention).mean(1)).clamp(min=0))
        return torch.stack(maps)
