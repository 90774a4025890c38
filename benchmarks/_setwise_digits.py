"""Handwritten digits with half the labels wrong by a rule.

Shared by nothing but `bench_set_objective.py`.
"""

from __future__ import annotations

import numpy as np
import torch
from _perceptrons import CLASSES, Cut
from sklearn.datasets import load_digits

PRETRAIN_STEPS = 18


def cut(seed: int) -> Cut:
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
    return Cut(parts, wrong)
