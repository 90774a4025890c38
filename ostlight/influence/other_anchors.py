"""First-order utilities for anchors that nobody had when the pool was scored, from stored random products."""

from __future__ import annotations

import torch
from torch import Tensor

from ostlight.errors import BadRecord, InfluenceError
from ostlight.influence.gradients.random_products import RandomDirections
from ostlight.influence.sample_gradient import sample_gradient, train_only
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.progress import track


def anchor_products(step: SimulatedStep, directions: RandomDirections) -> Tensor:
    """What samples' random products are multiplied with: ``[A, M]`` float64, rows by the anchors' numbers.

    A sample's alignment with anchor a, ``<g_i, P g_a>``, is about its products times row a; with a mean of anchors,
    about its products times the mean of their rows. Utilities of first order are the step size times that. Costs a
    backward pass an anchor, and memory for one gradient.

    Args:
        step: its anchors are the new ones; model, parameters and preconditioner are those of the products.
        directions: made from the count, seed and preconditioner that the products were taken with.

    Raises:
        InfluenceError: an anchor's loss or gradient is not finite; names the anchor.
    """
    train_only(step.model, step.parameters)
    rows: dict[int, Tensor] = {}
    for index, single in track(step.anchors.singles(), "products of the anchors", len(step.anchors), "anchors"):
        try:
            _, gradient = sample_gradient(step.model, step.task, step.parameters, single)
        except BadRecord as error:
            raise InfluenceError(f"{step.anchors.name_of(index)}: {error}; fix it, or leave it out") from error
        rows[index] = directions.vector_products(gradient).double()
    return torch.stack([rows[index] for index in range(len(step.anchors))])
