"""Likeness to the anchors, by hand."""

from __future__ import annotations

import pytest
import torch

from ostlight.errors import ConfigError, SelectorError
from ostlight.selection.registry import create


def last_hidden(model, sample):
    single = model.batches([sample], 1)[0]
    with torch.no_grad():
        hidden = model.model(**single.inputs, output_hidden_states=True).hidden_states[-1][0, -1]
    return hidden / hidden.norm()


def test_the_score_is_the_cosine_with_the_nearest_anchor_or_the_mean(proxy, samples, selector_setting):
    model = proxy("float64")
    anchors = torch.stack([last_hidden(model, a) for a in samples("anchors")])
    batch = model.batches(samples("pool")[:5], 10_000)[0]
    for to in ("nearest", "mean"):
        selector = create("embedding_similarity", {"to": to})
        selector.setup(selector_setting(model))
        columns = selector.score(batch)
        for k, sample in enumerate(batch.samples):
            cosines = anchors @ last_hidden(model, sample)
            expected = cosines.max() if to == "nearest" else cosines.mean()
            assert columns["score"][k] == pytest.approx(float(expected), abs=1e-6)
            assert columns["nearest_anchor"][k] == samples("anchors")[int(cosines.argmax())].id


def test_anchors_are_required_and_unknown_values_refused(proxy, selector_setting):
    with pytest.raises(SelectorError, match="'embedding_similarity' needs anchors"):
        create("embedding_similarity").setup(selector_setting(proxy(), anchors=[], groups=[]))
    with pytest.raises(ConfigError, match="to must be one of nearest, mean; got 'far'"):
        create("embedding_similarity", {"to": "far"})
