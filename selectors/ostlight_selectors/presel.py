"""PreSel: tasks by how much their instructions matter, then representative images of every cluster in a task."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Gt, Interval

from ostlight.config.budget import Budget
from ostlight.config.schema import Count
from ostlight.data.sample import IMAGE_PLACEHOLDER, Sample
from ostlight.errors import BadRecord, DataError, SelectorError
from ostlight.models.batch import Batch
from ostlight.models.encoding.encoder import encode_reduced
from ostlight.selection.context import ScoringContext
from ostlight.selection.random_numbers import uniform_by_id
from ostlight.selection.scores import Scores
from ostlight.selection.strata import Strata, select_from
from ostlight_selectors.embed import EmbeddingSelector, nearest_neighbours, rows_by_cluster, spherical_clusters

log = logging.getLogger("ostlight.selectors.presel")

SAMPLES_PER_CLUSTER = 100


class PreSel(EmbeddingSelector):
    """Images typical of their cluster, more from the tasks whose instructions help most with the answers.

    "Filter Images First, Generate Instructions Later: Pre-Instruction Data Selection for Visual Instruction Tuning"
    (PreSel, arXiv 2503.07591). On a small random reference share of every task the instruction relevance score is
    ``IRS = l(answer | instruction, image) / l(answer | image)``, losses over the answer tokens by the proxy, which was
    warmed up on a random part of the pool. A task's share of the budget is ``softmax(-mean IRS / temperature)``; what a
    small task cannot use goes to the others. Within a task images are clustered by k-means, clusters get shares by
    their size, and each keeps the samples of the highest neighbour centrality, the mean cosine with the nearest images
    of the same cluster. That is the score. The reference share itself is part of the subset. One forward pass a sample,
    by `embed`, and two on the reference share.
    """

    uses_proxy: ClassVar[bool] = True
    embedding_defaults: ClassVar[Mapping[str, Any]] = {"tokens": "image"}
    folder_defaults: ClassVar[Mapping[str, Any]] = {"tokens": "image"}
    selection_options: ClassVar[tuple[str, ...]] = ("temperature", "keep_reference")

    @dataclass
    class Options(EmbeddingSelector.Options):
        """Attributes:
        embedding: options of ``embed``: ``{source: facebook/dinov2-base}`` for the authors' image features.
        task: tag that names a sample's task; samples without it are a task of their own.
        reference: share of each task on which instructions are scored, at least one sample.
        temperature: of the softmax over tasks; the larger, the more alike their shares. ``null`` for
            ``1 / sqrt(number of tasks)``, as the authors have.
        clusters: of k-means in each task; ``null`` for one in 100 samples.
        neighbours: nearest images whose mean cosine is the centrality.
        keep_reference: the subset starts with the reference share.
        """

        task: str = "task"
        reference: Annotated[float, Interval(gt=0, le=1)] = 0.05
        temperature: Annotated[float, Gt(0)] | None = None
        clusters: Count | None = None
        neighbours: Count = 5
        keep_reference: bool = True

    def tags_needed(self) -> dict[str, str]:
        return {"task": self.options.task}

    def setup(self, context: ScoringContext) -> None:
        self.model = context.proxy.model
        super().setup(context)

    def measure(self, vectors: np.ndarray, embedded: Scores, context: ScoringContext) -> dict[str, np.ndarray]:
        tasks, draw = embedded.tag(self.options.task), np.array(uniform_by_id(context.seed, embedded.ids))
        cluster, centrality = np.empty(len(vectors), dtype=np.int64), np.empty(len(vectors))
        is_reference, used = np.zeros(len(vectors), dtype=bool), 0
        for task in sorted(set(tasks)):
            members = np.flatnonzero(tasks == task)
            count = self.options.clusters or max(1, len(members) // SAMPLES_PER_CLUSTER)
            of_members, centroids = spherical_clusters(vectors[members], count, context.seed)
            cluster[members] = used + of_members
            used += len(centroids)
            chosen = members[np.argsort(draw[members])][: max(1, round(self.options.reference * len(members)))]
            is_reference[chosen] = True
        for rows in rows_by_cluster(cluster):
            centrality[rows] = neighbour_centrality(vectors[rows], self.options.neighbours)
        log.info(f"{used:,} clusters in {len(set(tasks)):,} tasks, {is_reference.sum():,} samples of reference")
        return {"score": centrality, "cluster": cluster, "is_reference": is_reference}

    def score(self, batch: Batch) -> dict[str, Any]:
        columns = super().score(batch)
        columns["instruction_relevance"] = relevance = [None] * len(batch)
        rows = [k for k, is_reference in enumerate(columns.get("is_reference", [])) if is_reference]
        if rows:
            for row, value in zip(rows, self._relevance(batch.rows(rows)).tolist(), strict=True):
                if np.isfinite(value):
                    relevance[row] = value
                else:
                    detail = "the loss is not finite, or 0 without the instruction"
                    columns["failure"][row] = BadRecord("relevance_not_finite", detail)
        return columns

    def _relevance(self, batch: Batch) -> torch.Tensor:
        """``[N]`` loss of the answer with the instruction over that without it."""
        reduced = [
            encode_reduced(self.model.encoder, without_instruction(sample), whole)
            for sample, whole in zip(batch.samples, batch.encoded, strict=True)
        ]
        without = self.model.collator.batch(batch.samples, reduced).to(batch.labels.device)
        with torch.no_grad():
            return self.model.losses(batch).double() / self.model.losses(without).double()

    def select(self, scores: Scores, budget: Budget) -> np.ndarray:
        """Raises:
        SelectorError: a threshold, which leaves no budget to share.
        """
        if budget.threshold is not None:
            raise SelectorError("presel shares a budget over tasks; give a fraction, a count or tokens")
        tasks, is_reference = self._tasks(scores), scores.column("is_reference").astype(bool)
        weights = self._task_weights(tasks, scores.column("instruction_relevance").astype(np.float64))
        kept = np.empty(0, dtype=np.int64)
        if self.options.keep_reference:
            kept = self._reference(scores, budget, np.flatnonzero(is_reference))
        left = _what_is_left(scores, budget, kept)
        if left is None:
            return kept
        rest = np.setdiff1d(np.arange(len(scores)), kept)
        strata = Strata(tasks[rest], weights)
        return np.concatenate([kept, rest[select_from(strata, scores.take(rest), left, _from_clusters)]])

    def _reference(self, scores: Scores, budget: Budget, rows: np.ndarray) -> np.ndarray:
        """The reference samples that fit the budget, spread over the tasks."""
        if not len(rows):
            return rows
        all_of_them = Strata(self._tasks(scores)[rows])
        spread = select_from(all_of_them, scores.take(rows), Budget(fraction=1.0), lambda part, share: share.top(part))
        size = budget if budget.tokens is not None else Budget(count=budget.size(len(scores)))
        kept = rows[size.within(scores.take(rows), spread)]
        if len(kept) < len(rows):
            log.warning(
                f"the budget has space for {len(kept):,} of {len(rows):,} reference samples and for no other; lower "
                "selector.options.reference, or set keep_reference to false"
            )
        return kept

    def _tasks(self, scores: Scores) -> np.ndarray:
        """Of each row; a stratum of which no sample has the tag is one task."""
        try:
            return scores.tag(self.options.task)
        except DataError:
            return np.full(len(scores), "", dtype=object)

    def _task_weights(self, tasks: np.ndarray, relevance: np.ndarray) -> dict[str, float] | None:
        """Share of the budget by task; ``None``, for shares by size, where no reference sample was measured."""
        names = sorted(set(tasks))
        means = np.array([_mean(relevance[tasks == name]) for name in names])
        unknown = [name for name, mean in zip(names, means, strict=True) if np.isnan(mean)]
        if len(unknown) == len(names):
            log.warning("no reference sample was measured, so tasks get shares by their size")
            return None
        if unknown:
            log.warning(f"no reference sample of {', '.join(map(repr, unknown))} was measured: the mean task counts")
            means = np.where(np.isnan(means), np.nanmean(means), means)
        shares = task_shares(means, self.options.temperature)
        shown = ", ".join(f"{n or '(none)'} {s:.1%}" for n, s in zip(names[:20], shares, strict=False))
        log.info(f"shares by instruction relevance: {shown}{', ...' if len(names) > 20 else ''}")
        return dict(zip(names, shares.tolist(), strict=True))


def without_instruction(sample: Sample) -> Sample:
    """The conversation with only the images left in the turns that are not trained on."""
    turns = (
        turn if turn.trained else replace(turn, text=IMAGE_PLACEHOLDER * turn.text.count(IMAGE_PLACEHOLDER))
        for turn in sample.turns
    )
    return replace(sample, turns=tuple(turns))


def neighbour_centrality(vectors: np.ndarray, neighbours: int) -> np.ndarray:
    """``[n]`` mean cosine of each unit vector ``[n, D]`` with its nearest others; 0 for one that is alone."""
    cosines, _ = nearest_neighbours(vectors, neighbours)
    return cosines.mean(1) if cosines.shape[1] else np.zeros(len(vectors))


def task_shares(relevance: np.ndarray, temperature: float | None) -> np.ndarray:
    """``[M]`` shares of the tasks, ``softmax(-s / T)`` of their mean instruction relevance ``[M]``.

    Args:
        relevance: s; low where the instruction helps most with the answer.
        temperature: T; ``None`` for ``1 / sqrt(M)``.
    """
    logits = -relevance / (temperature or 1 / np.sqrt(len(relevance)))
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _what_is_left(scores: Scores, budget: Budget, kept: np.ndarray) -> Budget | None:
    """The budget without what is kept; ``None`` where nothing is left."""
    if budget.tokens is not None:
        left = budget.tokens - int(scores.tokens[kept].sum())
        return Budget(tokens=left) if left > 0 else None
    left = budget.size(len(scores)) - len(kept)
    return Budget(count=left) if left > 0 else None


def _from_clusters(task: Scores, budget: Budget) -> np.ndarray:
    """Rows of one task: of each cluster those of the highest centrality, in proportion to its size."""
    return select_from(Strata(task.column("cluster")), task, budget, lambda part, share: share.top(part))
