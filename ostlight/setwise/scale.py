"""The scale of a set objective, chosen by what its sets do to a proxy, never by test data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ostlight.errors import DivergedError
from ostlight.setwise.pick import Pick


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
    """One candidate: its set, and the anchors' mean loss in nats after a brief training of the proxy on the set."""

    scale: Scale
    pick: Pick
    anchor_loss: float


@dataclass(frozen=True)
class Choice:
    """The candidate of the lowest anchor loss, and all that were tried, in the order given."""

    best: Tried
    tried: tuple[Tried, ...]


def choose_scale(
    candidates: Sequence[Scale],
    pick: Callable[[Scale], Pick],
    anchor_loss_after: Callable[[np.ndarray], float],
) -> Choice:
    """Picks a set with each candidate, trains the proxy briefly on it and keeps the one whose anchors fare best.

    The anchors gave the objective its slopes and curvature; reading them once more uses nothing new and nothing of the
    test data, but with few anchors it favours sets that fit these anchors.

    Args:
        candidates: at least one; of equally good ones the first is kept.
        pick: the set for a scale.
        anchor_loss_after: given the rows of a set, the anchors' mean loss after training a fresh copy of the proxy on
            them. Called once for each different set. A loss that is not finite (training diverged) is never chosen.

    Raises:
        ValueError: no candidates.
        DivergedError: none led to a finite loss.
    """
    if not candidates:
        raise ValueError("no scales to choose from; give at least one candidate")
    known: dict[bytes, float] = {}
    tried = []
    for scale in candidates:
        found = pick(scale)
        key = np.sort(found.rows).tobytes()
        if key not in known:
            known[key] = float(anchor_loss_after(found.rows))
        tried.append(Tried(scale, found, known[key]))
    finite = [one for one in tried if math.isfinite(one.anchor_loss)]
    if not finite:
        raise DivergedError(
            f"training on each of the {len(tried)} sets ended in a loss that is not finite "
            f"({', '.join(one.scale.label for one in tried)}); lower the learning rate of the brief training"
        )
    return Choice(min(finite, key=lambda one: one.anchor_loss), tuple(tried))
