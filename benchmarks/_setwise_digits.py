"""Handwritten digits with half the labels wrong by a rule, two small perceptrons, and what a proxy sees of the pool.

Shared by nothing but `bench_setwise_digits.py`: everything small enough for gradients to be formed in full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

Model = list[Tensor]
"""Weights and biases of two layers; a leading dimension trains that many models side by side."""

LR, MOMENTUM, BATCH, STEPS, BRIEF_STEPS, PRETRAIN_STEPS = 0.05, 0.9, 32, 300, 100, 18
PROXY_WIDTH, TARGET_WIDTH, CLASSES = 32, 128, 10
DAMPING_SHARE = 0.1
"""Damping's part of the typical sample's curvature: ``lambda median ||g||^2 = 0.1 median ||phi||^2``."""


@dataclass(frozen=True)
class Digits:
    """One seed's cut: ``(images, labels)`` of each part, and which of the pool are mislabelled."""

    parts: dict[str, tuple[Tensor, Tensor]]
    wrong: np.ndarray

    def __getitem__(self, part: str) -> tuple[Tensor, Tensor]:
        return self.parts[part]


def cut(seed: int) -> Digits:
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    rows = np.split(rng.permutation(len(labels)), [120, 220, 320, 700])
    wrong = np.zeros(len(rows[4]), dtype=bool)
    wrong[rng.permutation(len(wrong))[: len(wrong) // 2]] = True
    rule = rng.permutation(CLASSES)
    while (rule == np.arange(CLASSES)).any():
        rule = rng.permutation(CLASSES)
    labels = labels.copy()
    labels[rows[4][wrong]] = rule[labels[rows[4][wrong]]]
    names = ("pretrain", "anchors", "dev", "test", "pool")
    parts = {n: (torch.tensor(images[r] / 16 - 0.3), torch.tensor(labels[r])) for n, r in zip(names, rows, strict=True)}
    return Digits(parts, wrong)


def fresh(width: int, seed: int) -> Model:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(64, width, generator=generator, dtype=torch.float64) / 32**0.5
    second = torch.randn(width, CLASSES, generator=generator, dtype=torch.float64) / width**0.5
    return [first, first.new_zeros(1, width), second, second.new_zeros(1, CLASSES)]


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
    model: Model, pool: tuple[Tensor, Tensor], sets: Sequence[np.ndarray], steps: int, batch: int, seed: int
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
            p.sub_(LR * v)
            moved += (LR * v).square().flatten(1).sum(1)
        norms.append(moved.sqrt())
    return model, torch.stack(norms)


def single(models: Model, index: int = 0) -> Model:
    return [p[index] for p in models]


def gradients(model: Model, images: Tensor, errors: Tensor) -> Tensor:
    """``[N, parameters]`` gradient of each sample."""
    hidden, first, second = backward(model, images, errors)
    weights = (torch.einsum("ni,nj->nij", images, first), torch.einsum("ni,nj->nij", hidden, second))
    return torch.cat([weights[0].flatten(1), first, weights[1].flatten(1), second], 1)


class Scored:
    """A proxy's view of the pool: each sample's gradient, slope, and sketches of any number of probes."""

    def __init__(self, proxy: Model, digits: Digits, eta: float | None, update_norm: float, seed: int) -> None:
        self.proxy, self.digits, self.seed = proxy, digits, seed
        self.gradients = gradients(proxy, digits["pool"][0], label_errors(proxy, *digits["pool"]))
        self.slope = gradients(proxy, digits["anchors"][0], label_errors(proxy, *digits["anchors"])).mean(0)
        self.f = (self.gradients @ self.slope).numpy()
        self.eta = eta or update_norm / float(self.gradients.norm(dim=1).median())
        self.loss = losses(proxy, *digits["pool"]).numpy()

    def phi(self, probes: int | None) -> np.ndarray:
        """``[N, K]``; ``None`` takes every anchor and class, so that nothing is estimated."""
        images, _ = self.digits["anchors"]
        shares = torch.softmax(logits(self.proxy, images)[1], -1)
        generator = torch.Generator().manual_seed(1_000 * self.seed + (probes or 0))
        found = []
        for k in range(probes or CLASSES):
            if probes:
                labels = torch.multinomial(shares, 1, generator=generator)[:, 0]
                signs = torch.randint(0, 2, (len(images),), generator=generator).double() * 2 - 1
            else:
                labels, signs = torch.full((len(images),), k), shares[:, k].sqrt()
            errors = torch.softmax(logits(self.proxy, images)[1], -1) - torch.nn.functional.one_hot(labels, CLASSES)
            rows = gradients(self.proxy, images, errors * signs[:, None]) / len(images) ** 0.5
            found.append(rows.sum(0, keepdim=True) if probes else rows)
        return (self.gradients @ torch.cat(found).T).numpy() / math.sqrt(probes or 1)

    def damped(self, phi: np.ndarray) -> np.ndarray:
        """``phi`` with as many columns again for ``lambda I``, from Gaussian probes."""
        generator = torch.Generator().manual_seed(self.seed)
        probes = torch.randn(self.gradients.shape[1], phi.shape[1], generator=generator, dtype=torch.float64)
        typical = np.median((phi**2).sum(1)) / float(self.gradients.square().sum(1).median())
        columns = (self.gradients @ probes).numpy() * math.sqrt(DAMPING_SHARE * typical / phi.shape[1])
        return np.concatenate([phi, columns], 1)

    def exact(self, eta: float) -> np.ndarray:
        """``[N]`` the definition: one SGD step on each sample, the anchors' loss before less after."""
        before, found = losses(self.proxy, *self.digits["anchors"]).mean(), []
        for part in self.gradients.split(64):
            moved, start = [], 0
            for p in self.proxy:
                moved.append(p - eta * part[:, start : start + p.numel()].view(-1, *p.shape))
                start += p.numel()
            found.append(before - losses(moved, *self.digits["anchors"]).mean(-1))
        return torch.cat(found).numpy()
