"""What a selector is given, without a run around it."""

from __future__ import annotations

import numpy as np
import pytest

from ostlight.data.sample import Sample
from ostlight.errors import BadRecord
from ostlight.models.batch import Batch
from ostlight.pipeline.scoring.rows import checked_columns, scored_rows, to_table
from ostlight.selection.context import ProxyContext, ScoringContext
from ostlight.selection.scores import Scores
from ostlight_selectors.embed import ANCHORS, PARTS


@pytest.fixture
def selector_setting(samples, tmp_path):
    """A ``ScoringContext`` around a model that was not warmed up, with the anchors grouped by task."""

    def make(model, **changes) -> ScoringContext:
        anchors = samples("anchors")
        given = ProxyContext(
            model=model,
            folder=tmp_path / "proxy",
            records=48,
            examples=lambda count: iter(model.batches(samples("pool")[:count], 1)),
            update_norm=lambda parameters: None,
            lr=1e-4,
            tokens_per_batch=1000,
        )
        facts = {"anchors": anchors, "groups": [s.tags["task"] for s in anchors], "seed": 0, "folder": tmp_path}
        return ScoringContext(**(facts | changes), _proxy=given)

    return make


@pytest.fixture
def scored_by_embeddings(tmp_path):
    """Scores of a selector that reads ``embed``'s table, for vectors given by hand; their ids are ``s000`` and so on.

    Keyword arguments: ``anchors`` vectors and their ``groups``, ``rejected`` positions, ``order`` of the pool,
    ``tokens`` of each sample, ``notes`` of ``embed``.
    """

    def make(
        selector, vectors, anchors=(), groups=None, rejected=(), order=None, tokens=None, seed=0, notes=None
    ) -> Scores:
        half = np.asarray(vectors, dtype=np.float16)
        order = np.arange(len(half)) if order is None else np.asarray(order)
        samples = [Sample(f"s{k:03d}", (), position=p) for p, k in enumerate(order)]
        failures = [BadRecord("embedding_not_finite", "") if k in rejected else None for k in order]
        columns = {"score": np.zeros(len(half)), "embedding": list(half[order]), "failure": failures}
        np.savez(tmp_path / ANCHORS, anchors=np.asarray(anchors, dtype=np.float16))
        trusted = [Sample(f"a{k}", ()) for k in range(len(anchors))]
        context = ScoringContext(
            anchors=trusted,
            groups=groups or ["" for _ in trusted],
            seed=seed,
            folder=tmp_path / "own",
            dependencies={"embed": to_table(scored_rows(Batch(samples), columns))},
            dependency_notes={"embed": {PARTS: ["all"]} | (notes or {})},
            dependency_folders={"embed": tmp_path},
        )
        selector.setup(context)
        batch = Batch(samples)
        table = to_table(scored_rows(batch, checked_columns(selector.score(batch), len(batch), "selector")))
        scores = Scores(table)
        return scores if tokens is None else scores.with_tokens(np.asarray(tokens)[order][scores.positions])

    return make
