"""What a selector is given, without a run around it."""

from __future__ import annotations

import pytest

from ostlight.selection.context import ProxyContext, ScoringContext


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
