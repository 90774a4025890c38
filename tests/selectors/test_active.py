"""Active learning: the expectation of One-Step-Train's utility over the proxy's own answers, by hand and from files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import ostlight
from ostlight.data.sample import Sample, Turn
from ostlight.errors import ConfigError, DataError
from ostlight.influence.estimators.exact import Exact
from ostlight.influence.parameters import select_parameters
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.models.influence_task import make_anchors
from ostlight.models.losses import IGNORED
from ostlight.selection.registry import create
from ostlight.selection.scores import Scores

pytestmark = pytest.mark.usefixtures("few_samples_compared")

ACTIVE = {"estimator": "exact", "parameters": "head", "step_size": 0.05, "answers": 3, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def unlabelled(digits: Any, tmp_path_factory: pytest.TempPathFactory):
    """The first ten questions without their answers, and an eleventh with its own."""
    table = pq.read_table(digits.pool).slice(0, 11)
    turns = table["conversations"].to_pylist()
    bare = pa.array([t[:1] for t in turns[:10]] + turns[10:], table.schema.field("conversations").type)
    path = tmp_path_factory.mktemp("unlabelled") / "pool.parquet"
    pq.write_table(table.set_column(table.schema.get_field_index("conversations"), "conversations", bare), path)
    return path


@pytest.fixture
def active(settings, unlabelled):
    def make(name: str = "run", **options: Any) -> dict[str, Any]:
        chosen = {"name": "active", "options": ACTIVE | options}
        return settings(name=name, pool={"path": str(unlabelled)}, selector=chosen)

    return make


def test_the_score_is_the_expectation_over_the_proxys_answers(active, proxy, samples):
    selection = ostlight.select(active())
    assert not selection.rejected
    scores = Scores.read(selection.folder.scores)
    model = proxy("float32")
    parameters = select_parameters(model.model, "head")
    anchors = make_anchors(model, samples("anchors"), [""] * 14, 16_384)
    exact = Exact(SimulatedStep(model.model, parameters, anchors, 0.05))
    pool = samples("pool")[:11]

    def one(sample: Sample) -> tuple[float, float]:
        encoded = model.encoder.encode(sample)
        row = exact.one(model.collator.batch([sample], [encoded]))
        return row["score"], -row["loss"] * int((encoded.labels != IGNORED).sum())

    for i, answers in enumerate(scores.table["answers"].to_pylist()):
        if i == 10:
            assert answers == [pool[i].answer], "a sample with an answer is scored on it"
        else:
            assert 1 <= len(answers) <= 3
        bare = replace(pool[i], turns=pool[i].turns[:-1])
        tried = [one(replace(bare, turns=(*bare.turns, Turn("assistant", a, trained=True)))) for a in answers]
        utility = np.array([u for u, _ in tried])
        weights = torch.softmax(torch.tensor([log for _, log in tried], dtype=torch.float64), 0).numpy()
        assert scores.column("expected_utility")[i] == pytest.approx(float(weights @ utility), rel=2e-3, abs=1e-6)
        assert scores.score[i] == pytest.approx(float(weights @ np.maximum(utility, 0)), rel=2e-3, abs=1e-6)


def test_the_proxys_answers_do_not_depend_on_the_batch(active):
    tables = []
    for name, tokens in (("alone", 1), ("together", 100_000)):
        config = active(name)
        config["compute"] |= {"tokens_per_batch": tokens}
        tables.append(Scores.read(ostlight.select(config).folder.scores))
    assert tables[0].table["answers"].to_pylist() == tables[1].table["answers"].to_pylist()
    assert tables[0].score == pytest.approx(tables[1].score, rel=1e-3, abs=1e-7)


def test_the_plain_expectation_on_request(active):
    scores = Scores.read(ostlight.select(active(leave_out_harmful=False)).folder.scores)
    assert (scores.score == scores.column("expected_utility")).all()


def test_hidden_answers_count_as_none(active, settings, digits):
    bare = Scores.read(ostlight.select(active("bare")).folder.scores)
    chosen = {"name": "active", "options": ACTIVE | {"hide_answers": True}}
    whole = settings(name="hidden", pool={"path": str(digits.pool)}, selector=chosen)
    hidden = Scores.read(ostlight.select(whole).folder.scores)
    answers = [scores.table["answers"].to_pylist()[:10] for scores in (bare, hidden)]
    assert answers[0] == answers[1]
    assert hidden.score[:10] == pytest.approx(bare.score[:10], rel=1e-3, abs=1e-7)


def test_the_step_size_comes_from_the_proxys_first_answers(active, logged):
    ostlight.select(active(step_size=None, estimator="second_order", probes=4))
    assert "step size " in logged()


def test_other_selectors_reject_unlabelled_records(active, settings, unlabelled):
    selection = ostlight.select(settings(pool={"path": str(unlabelled)}))
    assert selection.rejected == {"no_answer": 10}


def test_selected_samples_must_be_annotated_before_they_are_trained_on(active, unlabelled, tmp_path):
    pq.write_table(pq.read_table(unlabelled).slice(0, 10), tmp_path / "bare.parquet")
    config = active() | {"pool": {"path": str(tmp_path / "bare.parquet")}}
    ostlight.select(config)
    with pytest.raises(DataError, match="train: none of the 2 samples can be used; the first: no_answer"):
        ostlight.train(config)


def test_options_out_of_range(active):
    with pytest.raises(ConfigError, match="answers must be a whole number, at least 1; got 0"):
        ostlight.select(active(answers=0))
    with pytest.raises(ConfigError, match="estimator must be one of"):
        ostlight.select(active(estimator="third_order"))


def test_it_needs_anchors_and_fits_its_parameters(active, logged):
    assert create("active").needs_anchors
    ostlight.select(active(parameters="auto"))
    assert "(blocks)" in logged()
