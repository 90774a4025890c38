"""The scale of a set objective, chosen by what its sets do to a proxy, never by test data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ostlight.errors import DivergedError
from ostlight.selection.set_objective.pick import Pick


@dataclass(frozen=True)
class Scale:
    """Step size and batch size of the objective.

    Attributes:
        eta: step size; the displacement ``e`` along the set's mean gradient in the plain form.
        batch_size: B; infinite in the plain form.
    """

    eta: float
    batch_size: float = math.inf

    @property
    def label(self) -> str:
        """``e=2`` or ``eta=0.1 B=16``."""
        return f"e={self.eta:g}" if math.isinf(self.batch_size) else f"eta={self.eta:g} B={self.batch_size:g}"


@dataclass(frozen=True)
class Tried:
    """One candidate: its set, and the mean loss in nats on trusted samples after training the proxy briefly on it."""

    scale: Scale
    pick: Pick
    loss: float


@dataclass(frozen=True)
class Choice:
    """The candidate of the lowest loss, and all that were tried, in the order given."""

    best: Tried
    tried: tuple[Tried, ...]


def choose_scale(
    candidates: Sequence[Scale],
    pick: Callable[[Scale], Pick],
    loss_after: Callable[[np.ndarray], float],
) -> Choice:
    """Picks a set with each candidate, trains the proxy on it and keeps the one after which trusted samples fare best.

    Best read on others than the anchors, which gave the objective its slopes and curvature: few anchors would favour
    sets that fit them.

    Args:
        candidates: at least one; of equally good ones the first is kept.
        pick: the set for a scale.
        loss_after: given the rows of a set, the trusted samples' mean loss after training a fresh copy of the proxy on
            them. Called once for each different set. A loss that is not finite (training diverged) is never chosen.

    Raises:
        ValueError: no candidates.
        DivergedError: none led to a finite loss.
    """
    if not candidates:
        raise ValueError("no scales to choose from; give at least one candidate")
    picks = [pick(scale) for scale in candidates]
    losses = losses_after([(s.label, p.rows) for s, p in zip(candidates, picks, strict=True)], loss_after)
    tried = tuple(Tried(*one) for one in zip(candidates, picks, losses, strict=True))
    finite = [one for one in tried if math.isfinite(one.loss)]
    return Choice(min(finite, key=lambda one: one.loss), tried)


def losses_after(sets: Sequence[tuple[str, np.ndarray]], loss_after: Callable[[np.ndarray], float]) -> list[float]:
    """The loss after training on each set, in the order given.

    Args:
        sets: name and rows of each; of sets that hold the same rows only the first is trained on.
        loss_after: the loss after training on some rows; not finite where the training diverged.

    Raises:
        DivergedError: none led to a finite loss.
    """
    known: dict[bytes, float] = {}
    found = []
    for _, rows in sets:
        key = np.sort(rows).tobytes()
        if key not in known:
            known[key] = float(loss_after(rows))
        found.append(known[key])
    if not any(math.isfinite(loss) for loss in found):
        raise DivergedError(
            f"training on each of the {len(sets)} sets ended in a loss that is not finite "
            f"({', '.join(name for name, _ in sets)}); lower the learning rate of the brief training"
        )
    return found
