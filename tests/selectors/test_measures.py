"""The selectors that rank by one number, each against a hand computation; low, high and middle."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ostlight
from ostlight.data.sample import Turn
from ostlight.errors import ConfigError, SelectorError
from ostlight.influence.parameters import select_parameters
from ostlight.influence.sample_gradient import norm, sample_gradient, train_only
from ostlight.models.influence_task import SampleTask
from ostlight.models.losses import IGNORED
from ostlight.pipeline import fingerprint
from ostlight.pipeline.scoring.rows import scored_rows
from ostlight.selection.registry import create
from ostlight.selection.scores import Scores
from ostlight_selectors.ifd import without_prompts
from ostlight_selectors.reference_loss import ReferenceLoss, trained_on_anchors


@pytest.fixture
def scored(proxy, samples, selector_setting):
    """Columns of a selector on five pool samples in one batch, with the model and the batch."""

    def score(name: str, **options):
        model = proxy("float64")
        selector = create(name, options)
        selector.setup(selector_setting(model))
        (batch,) = model.batches(samples("pool")[:5], 10_000)
        return selector.score(batch), model, batch

    return score


def answer_logits(model, single):
    """``[R, V]`` logits at the answer tokens of one sample, and ``[R]`` those tokens."""
    with torch.no_grad():
        logits = model.logits(single)[0]
    places = [t for t in range(1, single.labels.shape[1]) if single.labels[0, t] != IGNORED]
    return logits[[t - 1 for t in places]], single.labels[0, places]


def test_loss_is_the_mean_over_the_answer_tokens(scored):
    columns, model, batch = scored("loss")
    for k, single in enumerate(batch.singles()):
        expected = float(F.cross_entropy(*answer_logits(model, single)))
        assert float(columns["loss"][k]) == pytest.approx(expected, rel=1e-9)
        assert float(columns["score"][k]) == pytest.approx(-expected, rel=1e-9)


def test_el2n_is_the_mean_length_of_the_error(scored):
    columns, model, batch = scored("el2n")
    for k, single in enumerate(batch.singles()):
        logits, tokens = answer_logits(model, single)
        errors = torch.softmax(logits, -1) - F.one_hot(tokens, logits.shape[1])
        assert float(columns["score"][k]) == pytest.approx(float(errors.norm(dim=1).mean()), rel=1e-9)


def test_perplexity_reads_every_word_but_no_picture(scored):
    columns, model, batch = scored("perplexity")
    mark = model.encoder.tokenizer.convert_tokens_to_ids("<image>")
    for k, single in enumerate(batch.singles()):
        ids = single.inputs["input_ids"][0]
        assert int((ids == mark).sum()) == 4
        with torch.no_grad():
            nats = -torch.log_softmax(model.logits(single)[0, :-1], -1)[range(len(ids) - 1), ids[1:]]
        expected = math.exp(float(nats[ids[1:] != mark].mean()))
        assert float(columns["perplexity"][k]) == pytest.approx(expected, rel=1e-9)


def test_perplexity_does_not_depend_on_the_side_of_the_padding(scored, samples):
    columns, model, batch = scored("perplexity")
    selector = create("perplexity")
    selector.model, selector.image_id = model, model.encoder.tokenizer.convert_tokens_to_ids("<image>")
    model.collator.side = "left"
    left = selector.score(model.batches(batch.samples, 10_000)[0])
    assert torch.allclose(left["perplexity"], columns["perplexity"], rtol=1e-9)


def test_grad_norm_is_the_length_of_the_plain_gradient(scored):
    columns, model, batch = scored("grad_norm", parameters="last:1")
    parameters = select_parameters(model.model, "last:1")
    train_only(model.model, parameters)
    for k, single in enumerate(batch.singles()):
        loss, gradient = sample_gradient(model.model, SampleTask(), parameters, single)
        assert float(columns["score"][k]) == pytest.approx(norm(gradient), rel=1e-6)
        assert float(columns["loss"][k]) == pytest.approx(float(loss), rel=1e-9)


def test_ifd_divides_the_loss_by_that_of_the_answer_alone(scored):
    columns, model, batch = scored("ifd")
    for k, single in enumerate(batch.singles()):
        logits, tokens = answer_logits(model, single)
        with_prompt = F.cross_entropy(logits, tokens)
        text = f"<bos><user><assistant>{single.samples[0].answer}<eos>"
        ids = torch.tensor([model.encoder.tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logits = model.model(input_ids=ids).logits[0]
        assert ids[0, 3:].tolist() == tokens.tolist()
        ratio = float(with_prompt / F.cross_entropy(logits[2:-1], ids[0, 3:]))
        assert float(columns["ifd"][k]) == pytest.approx(ratio, rel=1e-6)
        assert float(columns["score"][k]) == pytest.approx(ratio if ratio < 1 else -ratio, rel=1e-6)


def test_ifd_compares_the_same_tokens_where_the_answer_is_cut(proxy, samples, selector_setting):
    sample = samples("pool")[0]
    whole = proxy("float64").encoder.encode(sample)
    first = int((whole.labels != IGNORED).nonzero()[0])
    model = proxy("float64", max_length=first + 3)
    (batch,) = model.batches([sample], 10_000)
    selector = create("ifd")
    selector.setup(selector_setting(model))
    alone = selector._answers_only(sample, batch.encoded[0])
    assert alone.labels[alone.labels != IGNORED].tolist() == whole.labels[first : first + 3].tolist()


def test_pictures_of_the_answers_stay_with_them(samples):
    picture = samples("pool")[0].images[0]
    turns = (Turn("user", "<image><image> look"), Turn("assistant", "<image> this", trained=True))
    images = tuple(replace(picture, data=bytes([k])) for k in range(3))
    alone = without_prompts(replace(samples("pool")[0], turns=turns, images=images))
    assert [t.text for t in alone.turns] == ["", "<image> this"]
    assert [i.data for i in alone.images] == [bytes([2])]


def test_ifd_keeps_no_sample_whose_question_does_not_help(settings):
    selection = ostlight.select(settings(selector={"name": "ifd"}), "budget.fraction=1.0")
    ifd = Scores.read(selection.folder.scores).column("ifd")
    assert 0 < len(selection.kept) == int((ifd < 1).sum())
    assert len(selection.kept) + selection.dropped == 48
    assert list(ifd[selection.kept]) == sorted(ifd[ifd < 1], reverse=True)


def test_length_counts_the_characters_of_all_answers(settings, samples):
    selection = ostlight.select(settings(selector={"name": "length"}), "budget.count=6")
    lengths = np.array([len(s.answer) for s in samples("pool")])
    assert sorted(lengths[selection.kept]) == sorted(lengths)[-6:]


def test_the_middle_is_where_half_of_the_pool_lies_on_either_side(settings):
    choice = {"name": "loss", "options": {"prefer": "middle"}}
    selection = ostlight.select(settings(selector=choice), "budget.count=8")
    losses = Scores.read(selection.folder.scores).column("loss")
    assert sorted(losses[selection.kept]) == sorted(losses)[20:28]
    assert losses[selection.kept[:3]].tolist() == [sorted(losses)[k] for k in (23, 24, 22)]
    with pytest.raises(SelectorError, match="prefer=middle none; give a fraction or count"):
        ostlight.select(settings(selector=choice), "budget.threshold=1.0")


def test_loss_keeps_the_easiest_or_the_hardest(settings):
    low = ostlight.select(settings(name="low", selector={"name": "loss"}), "budget.count=5")
    losses = Scores.read(low.folder.scores).column("loss")
    assert sorted(losses[low.kept]) == sorted(losses)[:5]
    hard = {"name": "loss", "options": {"prefer": "high"}}
    high = ostlight.select(settings(name="high", selector=hard), "budget.count=5")
    assert sorted(losses[high.kept]) == pytest.approx(sorted(losses)[-5:])


def test_an_unknown_preference_is_refused():
    with pytest.raises(ConfigError, match="prefer must be one of low, high, middle; got 'odd'"):
        create("loss", {"prefer": "odd"})


def test_reference_loss_and_its_drop_are_those_of_a_model_trained_on_the_anchors(
    scored, selector_setting, samples, proxy
):
    columns, model, batch = scored("loss_drop", epochs=2, lr=1e-3)
    reference, _, _ = scored("reference_loss", epochs=2, lr=1e-3)
    before = model.losses(batch).double()
    torch.testing.assert_close(columns["loss"], before)
    torch.testing.assert_close(columns["reference_loss"], reference["reference_loss"])
    assert np.allclose(columns["score"], ((before - columns["reference_loss"]) / before).detach())
    assert np.allclose(reference["score"], -reference["reference_loss"])
    trained = trained_on_anchors(selector_setting(model), 2, 1e-3)
    (anchors,) = model.batches(samples("anchors"), 10_000)
    with torch.no_grad():
        assert float(trained.losses(anchors).mean()) < float(model.losses(anchors).mean())
    untouched = zip(model.parameters(), proxy("float64").parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in untouched)


def test_both_losses_of_a_drop_are_taken_in_the_same_precision(proxy, samples, selector_setting):
    model = proxy("float32").bfloat16()
    selector = create("loss_drop", {"lr": 1e-30})  # the anchors teach nothing
    selector.setup(selector_setting(model))
    (batch,) = model.batches(samples("pool")[:5], 10_000)
    assert selector.score(batch)["loss_drop"].tolist() == [0] * 5
    assert next(model.parameters()).dtype == torch.bfloat16, "the proxy stays as it is"


def test_a_loss_of_zero_drops_no_further(proxy, samples, selector_setting):
    model = proxy("float64")
    selector = create("loss_drop")
    selector.setup(selector_setting(model))
    (batch,) = model.batches(samples("pool")[:2], 10_000)
    selector.model = SimpleNamespace(losses=lambda batch: torch.zeros(2))
    selector.reference = SimpleNamespace(losses=lambda batch: torch.tensor([0.0, 2.0]))
    columns = selector.score(batch)
    assert columns["score"][0] == 0
    assert columns["failure"][0] is None
    assert math.isnan(columns["score"][1])
    assert columns["failure"][1].reason == "loss_is_zero"


def test_the_code_of_the_reference_is_part_of_what_a_drop_is():
    assert create("loss_drop").fingerprints() == {"code of reference_loss": fingerprint.of_class(ReferenceLoss)}


def test_a_training_on_the_anchors_that_diverges_is_named(scored):
    with pytest.raises(SelectorError, match="diverged .* lower lr, now 1"):
        scored("reference_loss", lr=1e6)


def test_image_grounding_is_the_loss_without_the_image_less_the_loss_with_it(scored):
    columns, model, batch = scored("image_grounding")
    mark = model.encoder.tokenizer.convert_tokens_to_ids("<image>")
    for k, sample in enumerate(batch.samples):
        turns = tuple(replace(turn, text=turn.text.replace("<image>", "")) for turn in sample.turns)
        blind = model.collator.batch([sample], [model.encoder.encode(replace(sample, turns=turns, images=()))])
        assert not (blind.inputs["input_ids"] == mark).any()
        with torch.no_grad():
            expected = float(model.losses(blind)) - float(model.losses(batch.rows([k])))
        assert float(columns["score"][k]) == pytest.approx(expected, rel=1e-9)


def test_image_grounding_rejects_a_sample_without_an_image(proxy, samples, selector_setting):
    model = proxy("float64")
    selector = create("image_grounding")
    selector.setup(selector_setting(model))
    sample = samples("pool")[0]
    turns = tuple(replace(turn, text=turn.text.replace("<image>", "")) for turn in sample.turns)
    (batch,) = model.batches([replace(sample, turns=turns, images=())], 10_000)
    (failure,) = selector.score(batch)["failure"]
    assert failure.reason == "no_image"


def test_a_training_on_the_anchors_that_diverged_to_a_finite_loss_is_refused(settings):
    selector = {"name": "reference_loss", "options": {"lr": 1.0}}
    with pytest.raises(
        SelectorError, match=r"training on the anchors diverged \(their loss .* before, .* after\); lower lr"
    ):
        ostlight.select(settings(selector=selector))


def test_a_loss_that_is_not_finite_is_not_said_to_be_learnt(proxy, samples, selector_setting):
    selector, model = create("loss_drop"), proxy("float64")
    selector.setup(selector_setting(model))
    (batch,) = model.batches(samples("pool")[:4], 10_000)
    before, after = (torch.tensor(x) for x in ([float("nan"), float("nan"), 0.0, 1.0], [0.0, 1.0, 1.0, 0.5]))
    selector.model = SimpleNamespace(losses=lambda batch: before)
    selector.reference = SimpleNamespace(losses=lambda batch: after)
    rows = scored_rows(batch, selector.score(batch))
    assert [row.get("reason") for row in rows] == ["score_not_finite", "score_not_finite", "loss_is_zero", None]
    assert rows[3]["score"] == 0.5
