"""Two-layer perceptrons trained side by side, and what a small one, the proxy, sees of a pool.

A layer's gradient of one sample is an outer product, so inner products of two
samples' gradients need only the layers' inputs and output gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

Model = list[Tensor]
"""Weights and biases of two layers; a leading dimension trains that many models side by side."""

LR, MOMENTUM, BATCH, STEPS, BRIEF_STEPS = 0.05, 0.9, 32, 300, 100
PROXY_WIDTH, TARGET_WIDTH, CLASSES = 32, 128, 10


@dataclass(frozen=True)
class Cut:
    """One seed's cut: ``(images, labels)`` of each part, and which of the pool are mislabelled."""

    parts: dict[str, tuple[Tensor, Tensor]]
    wrong: np.ndarray

    def __getitem__(self, part: str) -> tuple[Tensor, Tensor]:
        return self.parts[part]


def fresh(inputs: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Model:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(inputs, width, generator=generator, dtype=torch.float64) / (inputs / 2) ** 0.5
    second = torch.randn(width, CLASSES, generator=generator, dtype=torch.float64) / width**0.5
    return [p.to(dtype) for p in (first, first.new_zeros(1, width), second, second.new_zeros(1, CLASSES))]


def logits(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden units and logits."""
    hidden = torch.relu(images @ model[0] + model[1])
    return hidden, hidden @ model[2] + model[3]


def losses(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    found = torch.log_softmax(logits(model, images)[1], -1)
    return -found.gather(-1, labels.expand(found.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def accuracy(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    return (logits(model, images)[1].argmax(-1) == labels).double().mean(-1)


def backward(model: Model, images: Tensor, errors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden units and the gradients at the hidden layer's input and at the logits."""
    hidden = logits(model, images)[0]
    return hidden, (errors @ model[2].transpose(-1, -2)) * (hidden > 0), errors


def label_errors(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of each cross-entropy at its logits."""
    errors = torch.softmax(logits(model, images)[1], -1)
    return errors - torch.nn.functional.one_hot(labels, CLASSES)


def trained(
    model: Model,
    pool: tuple[Tensor, Tensor],
    sets: Sequence[np.ndarray],
    steps: int,
    batch: int,
    seed: int,
    lr: float = LR,
) -> tuple[Model, Tensor]:
    """One copy of the model per set (of equal sizes), SGD with momentum; also the updates' norms ``[steps, sets]``."""
    chosen = torch.as_tensor(np.stack(sets))
    model = [p.expand(len(sets), *p.shape).clone() for p in model]
    velocity = [torch.zeros_like(p) for p in model]
    generator, order, norms = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long), []
    for _ in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(chosen.shape[1], generator=generator)])
        rows, order = chosen[:, order[:batch]], order[batch:]
        images = pool[0][rows]
        hidden, first, second = backward(model, images, label_errors(model, images, pool[1][rows]) / rows.shape[1])
        gradients = [images.mT @ first, first.sum(1, keepdim=True), hidden.mT @ second, second.sum(1, keepdim=True)]
        moved = torch.zeros(len(sets), dtype=torch.float64)
        for p, v, g in zip(model, velocity, gradients, strict=True):
            v.mul_(MOMENTUM).add_(g)
            p.sub_(lr * v)
            moved += (lr * v).square().flatten(1).sum(1)
        norms.append(moved.sqrt())
    return model, torch.stack(norms)


def single(models: Model, index: int = 0) -> Model:
    return [p[index] for p in models]


class Rows:
    """Samples as each layer's inputs and output gradients: ``<g_i, g_j>`` is a sum over layers of products of both."""

    def __init__(self, model: Model, images: Tensor, errors: Tensor) -> None:
        hidden, first, second = backward(model, images, errors)
        ones = torch.ones_like(images[:, :1])
        self.layers = [(torch.cat([images, ones], 1), first), (torch.cat([hidden, ones], 1), second)]

    def alike(self, other: Rows) -> list[Tensor]:
        """``[N, M]`` inner products of the inputs, layer by layer; the same for any labels of the other rows."""
        return [a @ b.T for (a, _), (b, _) in zip(self.layers, other.layers, strict=True)]

    def against(self, alike: list[Tensor], other: Rows, weights: Tensor) -> Tensor:
        """``[N]`` inner products with the sum of the other rows' gradients, weighted ``[M]``."""
        pairs = zip(alike, self.layers, other.layers, strict=True)
        return torch.stack([((same @ (w * weights[:, None])) * b).sum(1) for same, (_, b), (_, w) in pairs]).sum(0)

    def pairwise(self, alike: list[Tensor], other: Rows) -> Tensor:
        """``[N, M]`` inner products with each of the other rows' gradients."""
        pairs = zip(alike, self.layers, other.layers, strict=True)
        return torch.stack([same * (b @ w.T) for same, (_, b), (_, w) in pairs]).sum(0)

    def squared_norms(self) -> Tensor:
        return sum((a.square().sum(1) * b.square().sum(1) for a, b in self.layers), torch.zeros(()))


class Scored:
    """A proxy's view of the pool: each sample's slope, and sketches of any number of probes."""

    def __init__(self, proxy: Model, digits: Cut, eta: float | None, update_norm: float, seed: int) -> None:
        self.proxy, self.digits, self.seed = proxy, digits, seed
        self.errors = label_errors(proxy, *digits["pool"])
        self.rows = Rows(proxy, digits["pool"][0], self.errors)
        anchors = Rows(proxy, digits["anchors"][0], label_errors(proxy, *digits["anchors"]))
        count = len(digits["anchors"][1])
        self.alike = self.rows.alike(anchors)
        self.f = self.rows.against(self.alike, anchors, self.errors.new_full((count,), 1 / count)).numpy()
        self.eta = eta or update_norm / float(self.rows.squared_norms().sqrt().median())
        self.loss = losses(proxy, *digits["pool"]).numpy()

    @cached_property
    def unsketched(self) -> np.ndarray:
        """``[N, anchors * classes]`` sketch of every anchor and class, so that nothing is estimated."""
        images, _ = self.digits["anchors"]
        shares, found = torch.softmax(logits(self.proxy, images)[1], -1), []
        for k in range(CLASSES):
            errors = shares - torch.nn.functional.one_hot(torch.full((len(images),), k), CLASSES)
            rows = Rows(self.proxy, images, errors * shares[:, k, None].sqrt())
            found.append(self.rows.pairwise(self.alike, rows))
        return torch.cat(found, 1).numpy() / math.sqrt(len(images))

    def phi(self, probes: int | None) -> np.ndarray:
        """``[N, K]``; ``None`` is the sketch of every anchor and class."""
        if probes is None:
            return self.unsketched
        images, _ = self.digits["anchors"]
        shares = torch.softmax(logits(self.proxy, images)[1], -1)
        generator, found = torch.Generator().manual_seed(1_000 * self.seed + probes), []
        for _ in range(probes):
            labels = torch.multinomial(shares, 1, generator=generator)[:, 0]
            signs = torch.randint(0, 2, (len(images),), generator=generator).to(shares.dtype) * 2 - 1
            rows = Rows(self.proxy, images, shares - torch.nn.functional.one_hot(labels, CLASSES))
            found.append(self.rows.against(self.alike, rows, signs))
        return torch.stack(found, 1).numpy() / math.sqrt(len(images) * probes)

    def exact(self, eta: float) -> np.ndarray:
        """``[N]`` one SGD step on each sample, the anchors' loss before less after."""
        images, labels = self.digits["anchors"]
        before, inputs = (
            losses(self.proxy, images, labels).mean(),
            torch.cat([images, torch.ones_like(images[:, :1])], 1),
        )
        entered = images @ self.proxy[0] + self.proxy[1]
        (a, first), (h, second) = self.rows.layers
        found = []
        for part in torch.arange(len(a)).split(512):
            hidden = torch.relu(entered - eta * (a[part] @ inputs.T)[..., None] * first[part, None])
            alike = hidden @ h[part, :-1, None] + h[part, -1:, None]
            after = torch.log_softmax(hidden @ self.proxy[2] + self.proxy[3] - eta * alike * second[part, None], -1)
            found.append(before + after[:, torch.arange(len(labels)), labels].mean(-1))
        return torch.cat(found).numpy()
