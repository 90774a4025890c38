"""From inner products to utilities: the estimators' arithmetic and nothing else."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ostlight.errors import InfluenceError


@dataclass(frozen=True)
class SketchedUtility:
    """Inner product with the mean gradient, and curvature, of the anchors' loss along each sample's gradient.

    Attributes:
        alignment: ``[N]`` ``f_i = <g_i, g_V>``.
        curvature: ``[N, K]`` ``phi_i = (<g_i, q_1>, ..., <g_i, q_K>) / sqrt(K)``; K may be 0.
    """

    alignment: Tensor
    curvature: Tensor

    def second_order(self, eta: float) -> Tensor:
        """``[N]`` ``eta f_i - eta^2 / 2 * ||phi_i||^2``, in nats: unbiased for ``eta f_i - eta^2 / 2 g_i' H g_i``."""
        return eta * self.alignment - eta**2 / 2 * self.curvature.square().sum(1)


def sketches(dots: Tensor, group_sizes: Mapping[Hashable, int], num_probes: int) -> dict[Hashable, SketchedUtility]:
    """Takes the inner products apart.

    Args:
        dots: ``[N, groups * (1 + K)]``: group by group, with its mean gradient and then with its probes.
        group_sizes: anchors in each group, in that order.
        num_probes: K.
    """
    if dots.shape[1] != len(group_sizes) * (1 + num_probes):
        raise InfluenceError(
            f"{dots.shape[1]} inner products for {len(group_sizes)} groups of 1 + {num_probes} vectors each"
        )
    by_group = dots.view(len(dots), len(group_sizes), 1 + num_probes)
    return {
        group: SketchedUtility(by_group[:, k, 0], by_group[:, k, 1:] / max(1, num_probes) ** 0.5)
        for k, group in enumerate(group_sizes)
    }


def pooled(parts: Mapping[Hashable, SketchedUtility], group_sizes: Mapping[Hashable, int]) -> SketchedUtility:
    """The sketch of all anchors together from their groups': no further pass, ``groups * K`` curvature columns.

    ``L_V`` is the groups' mean weighted by their anchors, so alignments add with those weights and curvature columns,
    which count squared, with their roots.
    """
    total = sum(group_sizes.values())
    alignment = torch.stack([parts[group].alignment * (size / total) for group, size in group_sizes.items()]).sum(0)
    columns = [parts[group].curvature * (size / total) ** 0.5 for group, size in group_sizes.items()]
    return SketchedUtility(alignment, torch.cat(columns, dim=1))
