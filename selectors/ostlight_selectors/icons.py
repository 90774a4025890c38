"""ICONS: samples that many anchor groups vote for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Interval
from scipy.stats import rankdata

from ostlight.config.schema import SelectorChoice
from ostlight.models.batch import Batch
from ostlight.selection.context import ScoringContext
from ostlight.selection.pool_columns import PoolColumns
from ostlight.selection.registry import create
from ostlight.selection.scores import Scores, rejections
from ostlight.selection.selector import Selector

DEPENDENCY = "less"
INFLUENCES = {"step": "sgd", "average": "cosines"}
"""Options of `less` for the influences of the authors' scripts."""


class Icons(Selector):
    """The samples with the most votes: each anchor group votes for its share of the pool with the highest influence.

    "ICONS: Influence Consensus for Vision-Language Data Selection" (arXiv 2501.00654): a sample's influence on a task
    is the mean cosine of its gradient with those of the task's anchors, by `less`; every task votes for the samples
    above its own threshold, and votes are counted. Tie rule: of as many votes, the higher mean rank over the groups
    comes first, so ``score = votes + mean rank``, the rank in [0, 1). Tasks are the anchors' groups
    (``anchors.group``). What it costs is `less`.
    """

    needs_anchors: ClassVar[bool] = True

    @dataclass
    class Options:
        """Attributes:
        share: of the pool that each group votes for; the authors' is the share that is kept.
        less: options of ``less``; here ``{step: sgd, average: cosines}`` unless given.
        """

        share: Annotated[float, Interval(gt=0, le=1)] = 0.2
        less: dict[str, Any] = field(default_factory=dict)

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.less = {**INFLUENCES, **self.options.less}
        create("less", self.less, "selector.options.less")  # refuses unknown options before anything is scored

    def dependencies(self) -> list[SelectorChoice]:
        return [SelectorChoice("less", self.less, DEPENDENCY)]

    def setup(self, context: ScoringContext) -> None:
        table = context.dependencies[DEPENDENCY]
        failures, scores = rejections(table), Scores(table)
        column = "cosine_by_group" if "cosine_by_group" in scores else "score"
        influences = scores.column(column).reshape(len(scores), -1) if len(scores) else np.empty((0, 1))
        votes, ranks = votes_and_ranks(influences, self.options.share)
        self.columns = PoolColumns(scores.positions, {"score": votes + ranks, "votes": votes}, failures)

    def score(self, batch: Batch) -> dict[str, Any]:
        return self.columns.of(batch.samples)


def votes_and_ranks(influences: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """``[N]`` votes, and ``[N]`` mean ranks in [0, 1), of ``[N, G]`` influences.

    A group votes for the ``round(share N)`` samples (at least one) with the highest influence, and for those of equal
    influence as the last of them.
    """
    count = len(influences)
    if not count:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    voted = max(1, round(share * count))
    thresholds = np.sort(influences, axis=0)[count - voted]
    return (influences >= thresholds).sum(1), ((rankdata(influences, axis=0) - 1) / count).mean(1)
