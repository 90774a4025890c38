"""What both paths of `one_step_head` start from: answer positions only, with their weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ostlight_kernels.checks import IGNORED


@dataclass(frozen=True, slots=True)
class HeadProblem:
    """Answer positions only. Legend: n candidates, t their positions, s all anchors' positions, d width.

    Attributes:
        x: ``[n, t, d]`` features, moved to the front of each row; zeros behind a row's last answer.
        y: ``[n, t]`` int64 labels, ``IGNORED`` behind the last one.
        scale: ``[n]`` eta over the candidate's number of answer positions; NaN where it has none.
        anchor_x: ``[s, d]`` features.
        anchor_y: ``[s]`` int64 labels.
        anchor_share: ``[s]`` float64, the position's weight in the anchor loss; they sum to 1.
    """

    x: Tensor
    y: Tensor
    scale: Tensor
    anchor_x: Tensor
    anchor_y: Tensor
    anchor_share: Tensor

    @classmethod
    def of(
        cls,
        h: Tensor,
        labels: Tensor,
        anchor_h: Tensor,
        anchor_labels: Tensor,
        eta: float,
        anchor_weights: Tensor | None,
    ) -> HeadProblem:
        """From the arguments of ``one_step_head``, checked."""
        used = labels != IGNORED
        counts = used.sum(1)
        longest = int(counts.max()) if counts.numel() else 0
        front = torch.argsort(used.logical_not().to(torch.int8), dim=1, stable=True)[:, :longest]
        kept = torch.gather(used, 1, front)
        x = torch.gather(h, 1, front[:, :, None].expand(-1, -1, h.shape[2]))
        x = x.masked_fill(kept.logical_not()[:, :, None], 0.0)
        y = torch.gather(labels.long(), 1, front)

        anchor_used = anchor_labels != IGNORED
        owner = anchor_used.nonzero()[:, 0]
        weights = torch.ones(len(anchor_h), device=h.device) if anchor_weights is None else anchor_weights
        weights = weights.double() / weights.double().sum()
        share = (weights / anchor_used.sum(1))[owner]
        weighted = share > 0  # an anchor of weight zero would only cost time
        scale = eta / counts.double()
        scale = scale.masked_fill(counts == 0, float("nan")).to(
            torch.float64 if h.dtype == torch.float64 else torch.float32
        )
        return cls(
            x,
            y,
            scale,
            anchor_h[anchor_used][weighted],
            anchor_labels[anchor_used][weighted].long(),
            share[weighted],
        )

    def candidates(self, first: int, last: int) -> HeadProblem:
        """The same anchors, some of the candidates."""
        return replace(self, x=self.x[first:last], y=self.y[first:last], scale=self.scale[first:last])

    def utilities(self, decreases: Tensor) -> Tensor:
        """``[n]`` nats from ``[n, s]``, by how much each anchor position's loss decreases. Summed in float64."""
        totals = decreases.double() @ self.anchor_share
        return totals.masked_fill(self.scale.isnan(), float("nan")).to(self.scale.dtype)
