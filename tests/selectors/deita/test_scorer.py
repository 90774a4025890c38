"""A scorer's mean over the score tokens, by hand; prompts that keep their end; tokens from the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scorer_models import byte_tokenizer, scorer_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from ostlight.config.schema import Model
from ostlight.data.sample import Sample, Turn
from ostlight.digitmath.model import checkpoint
from ostlight.errors import BadRecord, OstlightError, SelectorError
from ostlight_selectors.deita.prompts import COMPLEXITY, QUALITY, QuestionAnswer, question_answer_pairs, truncate
from ostlight_selectors.deita.scorer import ChatScorer, Scorer, load_scorer

COMPLEXITY_TEXT = (
    "You are a helpful assistant. Please identify the complexity score of the following user query. \n"
    "##Query: {}  \n##Complexity: "
)
QUALITY_TEXT = (
    "You are a helpful assistant. Please identify the quality score of the Response corresponding to the Question. \n"
    " #Question#:\n{}\n#Response#:\n{} \n##Quality: "
)
CPU = torch.device("cpu")


def load(folder: Path, prompt=QUALITY, max_length: int = 2048, tokens_per_batch: int = 4096) -> Scorer:
    settings = Model(path=str(folder), dtype="float64", max_length=max_length)
    return load_scorer(settings, prompt, "quality", tokens_per_batch, CPU)


def by_hand(folder: Path, text: str) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer([text], return_tensors="pt")).logits[0, -1]
    six = logits[[tokenizer.convert_tokens_to_ids(d) for d in "123456"]].softmax(0)
    return sum(k * float(p) for k, p in enumerate(six, start=1))


def test_the_wording_is_the_published_one():
    assert COMPLEXITY.render(QuestionAnswer("Q", "A")) == COMPLEXITY_TEXT.format("Q")
    assert QUALITY.render(QuestionAnswer("Q", "A")) == QUALITY_TEXT.format("Q", "A")


def test_a_score_is_the_mean_under_the_six_probabilities(tmp_path: Path):
    folder = scorer_folder(tmp_path)
    asked = [QuestionAnswer("what is it?", "a long and winding answer"), QuestionAnswer("why", "so")]
    quality = load(folder).scores(asked)
    complexity = load(folder, COMPLEXITY).scores(asked)
    for k, pair in enumerate(asked):
        expected = by_hand(folder, QUALITY_TEXT.format(pair.question, pair.answer))
        assert quality[k] == pytest.approx(expected, rel=1e-9)
        assert complexity[k] == pytest.approx(by_hand(folder, COMPLEXITY_TEXT.format(pair.question)), rel=1e-9)
    assert quality[0] != pytest.approx(quality[1])


def test_a_score_does_not_depend_on_the_batch(tmp_path: Path):
    folder = scorer_folder(tmp_path)
    asked = [QuestionAnswer("w" * n, "a" * (40 - n)) for n in (1, 30, 7, 22)]
    together = load(folder, tokens_per_batch=10_000).scores(asked)
    alone = load(folder, tokens_per_batch=1).scores(asked)
    assert together == pytest.approx(alone, rel=1e-9)
    assert load(folder).scores(asked[::-1]) == pytest.approx(alone[::-1], rel=1e-9)


def test_what_is_cut_is_never_the_end_of_the_prompt(tmp_path: Path):
    folder = scorer_folder(tmp_path)
    scorer = load(folder, max_length=300)
    tokenizer = scorer.tokenizer
    fixed = len(tokenizer(QUALITY_TEXT.format("", ""))["input_ids"])
    for question, answer in ((500, 10), (10, 500), (500, 500)):
        ids = scorer.encode(QuestionAnswer("q" * question, "z" * answer)).inputs["input_ids"]
        assert len(ids) == 300
        text = tokenizer.decode(ids)
        assert text.endswith(" \n##Quality: ")
        asked, answered = text.removesuffix("##Quality: ").count("q"), text.count("z")
        assert answered == min(answer, 300 - fixed - min(question, (300 - fixed) // 2))
        assert asked >= min(question, (300 - fixed) // 2)


def test_a_limit_too_small_for_the_prompt_is_an_error(tmp_path: Path):
    (failed,) = load(scorer_folder(tmp_path), max_length=20).scores([QuestionAnswer("q", "a")])
    assert isinstance(failed, BadRecord)
    assert str(failed) == "prompt_too_long: the scorer's prompt alone exceeds max_length=20; raise it (field 'turns')"


def test_score_tokens_are_those_that_follow_the_prompt(tmp_path: Path):
    # A tokenizer that joins the last space with the digit: after the prompt without it comes " 1", not "1".
    joined = byte_tokenizer([("Ġ", d) for d in "123456"])
    scorer = load(scorer_folder(tmp_path, tokenizer=joined))
    assert scorer.score_ids == [joined.convert_tokens_to_ids("Ġ" + d) for d in "123456"]
    assert joined.decode(scorer.encode(QuestionAnswer("q", "a")).inputs["input_ids"]).endswith("##Quality:")


def test_a_tokenizer_without_score_tokens_is_refused(tmp_path: Path):
    folder = scorer_folder(tmp_path, tokenizer=byte_tokenizer([], leave_out="4"))
    with pytest.raises(
        SelectorError, match=r"selector.options.quality: its tokenizer has no token of its own for each"
    ):
        load(folder)


def test_a_missing_probability_is_a_failure_and_no_default(tmp_path: Path):
    scorer = load(scorer_folder(tmp_path))
    with torch.no_grad():
        scorer.model.lm_head.weight[scorer.score_ids[2]] = float("nan")
    (failed,) = scorer.scores([QuestionAnswer("q", "a")])
    assert isinstance(failed, BadRecord)
    assert str(failed) == "no_score: the scorer gave no probability for 3"


def test_a_vision_model_is_shown_the_picture(proxy, samples):
    model = proxy("float64")
    asked = question_answer_pairs(samples("pool")[0])
    other = QuestionAnswer(asked[0].question, asked[0].answer, samples("pool")[1].images)
    for scorer in (
        ChatScorer(model.model, model.encoder, model.collator, QUALITY, 512, 1000),
        load_scorer(
            Model(path=str(checkpoint("proxy")), dtype="float64", max_length=512), QUALITY, "quality", 1000, CPU
        ),
    ):
        first, second = scorer.scores([*asked, other])
        assert 1 < first < 6
        assert first != pytest.approx(second, rel=1e-6)
        encoded = scorer.encode(asked[0])
        assert "pixel_values" in encoded.inputs
        with torch.no_grad():
            logits = model.model(
                input_ids=encoded.inputs["input_ids"][None], pixel_values=encoded.inputs["pixel_values"]
            )
        digits = [model.encoder.tokenizer.convert_tokens_to_ids(d) for d in "123456"]
        six = logits.logits[0, -1, digits].softmax(0)
        assert first == pytest.approx(sum(k * float(p) for k, p in enumerate(six, start=1)), rel=1e-9)


def test_a_folder_that_is_no_model_is_an_error(tmp_path: Path):
    with pytest.raises(OstlightError, match="quality"):
        load(tmp_path)


def test_every_trained_turn_is_an_exchange_with_its_own_pictures(samples):
    picture = samples("pool")[0].images[0]
    turns = (
        Turn("system", "be brief"),
        Turn("user", "<image> one"),
        Turn("assistant", "first", trained=True),
        Turn("user", "two"),
        Turn("assistant", "not trained"),
        Turn("user", "<image><image> three"),
        Turn("assistant", "third", trained=True),
    )
    found = question_answer_pairs(Sample("s", turns, (picture, picture, picture)))
    assert [(e.question, e.answer, len(e.images)) for e in found] == [
        ("be brief\n<image> one", "first", 1),
        ("<image><image> three", "third", 2),
    ]
    assert found[1].without_images() == QuestionAnswer("three", "third")


@pytest.mark.parametrize("text", ["สวัสดี" * 60, "🦜" * 90])
def test_a_cut_within_a_character_of_several_tokens_ends(text: str):
    ends = [k + 1 for k, character in enumerate(text) for _ in character.encode()]

    def tokenizer(value: str, **options: Any) -> dict[str, Any]:
        return {"offset_mapping": [(0, end) for end in ends[: len(value.encode())]]}

    def length(pair: QuestionAnswer) -> int:
        return len((pair.question + pair.answer).encode())

    for limit in (100, 101, 102, 103):
        cut = truncate(QuestionAnswer("", text), limit, length, tokenizer)
        assert limit - 6 < length(cut) <= limit
        assert text.startswith(cut.answer)
