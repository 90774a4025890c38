"""DEITA from a pool to a subset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scorer_models import scorer_folder, sentence_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

import ostlight
from ostlight.errors import ConfigError, RunChangedError
from ostlight.selection.registry import create
from ostlight.selection.scores import Scores, read_score_table
from ostlight_selectors.deita import _sample_columns

PROXY = {"complexity": None, "quality": None}


def choice(**options) -> dict:
    return {"name": "deita", "options": PROXY | options}


def test_in_score_order_no_two_alike(settings):
    selection = ostlight.select(settings(selector=choice()), "budget.fraction=1.0")
    scores = Scores.read(selection.folder.scores)
    assert list(scores.score[selection.kept]) == sorted(scores.score[selection.kept], reverse=True)
    vectors = scores.column("embedding")
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(48), abs=1e-6)
    cosines = vectors @ vectors.T
    kept = set(selection.kept.tolist())
    assert 1 < len(kept) < 48
    for row in range(48):
        better = [k for k in kept if scores.score[k] > scores.score[row]]
        assert (row in kept) == (not better or cosines[row, better].max() <= 0.9)


def test_another_similarity_picks_anew_without_scoring(settings):
    few = ostlight.select(settings(selector=choice()), "budget.fraction=1.0")
    more = ostlight.select(settings(selector=choice(similarity=0.99)), "budget.fraction=1.0")
    assert len(more.kept) > len(few.kept)
    assert [e.stage for e in more.folder.cost_log.read()] == ["score", "select", "select"]
    all_ = ostlight.select(settings(selector=choice(similarity=1.0)), "budget.count=7")
    assert len(all_.kept) == 7


def test_the_score_is_the_sum_over_turns_of_the_products():
    row = _sample_columns([(2.0, 3.0), (4.0, 5.0)], np.ones(3))
    assert (row["score"], row["complexity"], row["quality"], row["failure"]) == (26.0, [2.0, 4.0], [3.0, 5.0], None)
    failed = _sample_columns([(2.0, 3.0)], np.array([np.nan, 1.0]))
    assert failed["failure"].reason == "embedding_not_finite"
    assert np.isnan(failed["score"])


def test_scorers_from_folders_and_the_product_in_the_table(settings, tmp_path: Path):
    complexity, quality = scorer_folder(tmp_path / "c", seed=1), scorer_folder(tmp_path / "q", seed=2)
    config = settings(selector=choice(complexity=str(complexity), quality=str(quality)))
    folder = ostlight.select(config).folder
    # Two prompts of bytes, the shorter of them longer than a hundred, for each of 48 samples.
    assert folder.cost_log.read()[0].tokens_in > 48 * 2 * 100
    table = read_score_table(folder.scores).to_pylist()
    assert len({row["score"] for row in table}) > 40
    for row in table:
        assert row["score"] == pytest.approx(row["complexity"][0] * row["quality"][0])
    scorer_folder(quality, seed=3)
    with pytest.raises(RunChangedError, match=r"changed: selector\.options\.quality"):
        ostlight.select(config)


def test_a_failed_scorer_rejects_the_sample(settings, samples, tmp_path: Path):
    folder = scorer_folder(tmp_path / "q")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():  # no prompt has a "v", and some questions ask what is even
        model.model.embed_tokens.weight[AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("v")] = float("nan")
    model.save_pretrained(folder)
    selection = ostlight.select(settings(selector=choice(quality=str(folder))), "budget.fraction=1.0")
    failed = {s.id for s in samples("pool") if "v" in s.prompt + s.answer}
    assert 0 < len(failed) < 48
    assert selection.rejected == {"no_score": len(failed)}
    rows = read_score_table(selection.folder.scores).to_pylist()
    assert {r["id"] for r in rows if r["score"] is None} == failed


def test_the_embedding_is_the_last_layer_at_the_last_token(proxy, samples, selector_setting):
    model = proxy("float64")
    selector = create("deita", PROXY)
    selector.setup(selector_setting(model))
    batch = model.batches(samples("pool")[:6], 10_000)[0]
    assert len(set(batch.tokens)) > 1, "nothing is padded"
    found = np.array(selector.score(batch)["embedding"])
    for k, single in enumerate(batch.singles()):
        with torch.no_grad():
            hidden = model.model(**single.inputs, output_hidden_states=True).hidden_states[-1][0, -1]
        assert found[k] == pytest.approx((hidden / hidden.norm()).numpy(), abs=1e-6)


def test_embeddings_by_a_sentence_model(settings, tmp_path: Path):
    path = str(sentence_folder(tmp_path / "s"))
    selection = ostlight.select(settings(selector=choice(embedder=path)))
    assert Scores.read(selection.folder.scores).column("embedding").shape == (48, 24)
    near = {"name": "embedding_similarity", "options": {"embedder": path}}
    scores = Scores.read(ostlight.select(settings(name="near", selector=near)).folder.scores)
    assert scores.score.max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"similarity": 1.5}, "similarity must be a number, at least -1 and at most 1; got 1.5"),
        ({"max_length": 0}, "max_length must be a whole number, at least 1; got 0"),
    ],
)
def test_options_out_of_range(options: dict, says: str):
    with pytest.raises(ConfigError, match=says):
        create("deita", options)
