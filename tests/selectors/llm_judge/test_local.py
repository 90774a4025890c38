"""A judge loaded here: the tiny proxy asked for one word, against its own next-token probabilities taken by hand."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import torch
from judge_server import says

import ostlight
from ostlight.config.schema import Model
from ostlight.data.sample import ImageRef, Sample, Turn
from ostlight.digitmath.model import checkpoint
from ostlight.errors import BadRecord, SelectorError
from ostlight.models.module import MultimodalModel
from ostlight.selection.scores import read_score_table
from ostlight.selection.usage import Usage
from ostlight_selectors.llm_judge.local import LocalJudge, word_ids
from ostlight_selectors.llm_judge.options import JudgeOptions
from ostlight_selectors.llm_judge.reply import Judgement
from ostlight_selectors.llm_judge.rubric import Band, Rubric

CPU = torch.device("cpu")
RUBRIC = str(Path(__file__).parents[3] / "benchmarks" / "digitmath_judge.yaml")
"""The bare question and answer: to a tokenizer of few words a code is a hundred tokens."""
PROXY = {"backend": "transformers", "model": str(checkpoint("proxy")), "rubric": RUBRIC, "min_mass": 0.0}


def local(rubric: Rubric | None = None, **options: Any) -> LocalJudge:
    chosen = JudgeOptions(**(PROXY | {"dtype": "float64"} | options))
    return LocalJudge(chosen, rubric or Rubric.read(chosen.rubric), Usage())


def by_hand(model: MultimodalModel, asked: Sample, words: tuple[str, ...]) -> torch.Tensor:
    """``[words]`` next-token probabilities after the prompt, the sample alone in its batch."""
    prompt = model.encoder.encode_prompt(asked)
    inputs = {k: v[None] if k == "input_ids" else v for k, v in prompt.inputs.items()}
    inputs["pixel_values"] = inputs["pixel_values"].double()
    with torch.no_grad():
        probabilities = (
            model.model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]).logits[0, -1].softmax(-1)
        )
    ids = [model.encoder.tokenizer.convert_tokens_to_ids(w) for w in words]
    return probabilities[ids]


def test_the_score_is_the_expected_value_whatever_the_batch(samples):
    pool = samples("pool")[:9]
    rubric = Rubric.read(RUBRIC)
    judge = local()
    found = judge.judge(pool, CPU)
    for sample, outcome in zip(pool, found, strict=True):
        yes, no = by_hand(judge.model, rubric.conversation(sample, one_word=True), ("yes", "no")).tolist()
        assert isinstance(outcome, Judgement)
        assert outcome.score == pytest.approx(yes / (yes + no), rel=1e-6)
        assert outcome.mass == pytest.approx(yes + no, rel=1e-6)
        assert outcome.mode == "logprobs"
    assert len({round(o.score, 9) for o in found}) > 5
    alone = [judge.judge([sample], CPU)[0].score for sample in reversed(pool)]
    assert alone[::-1] == pytest.approx([o.score for o in found], rel=1e-6)
    assert judge.usage.tokens_in == 2 * sum(
        len(judge.model.encoder.encode_prompt(rubric.conversation(s, one_word=True))) for s in pool
    )
    assert judge.usage.flops > 0
    assert judge.usage.calls == 0


def test_the_judge_looks_at_the_picture(samples):
    one, other = samples("pool")[:2]
    swapped = Sample(one.id, one.turns, other.images)
    first, second = local().judge([one, swapped], CPU)
    assert first.score != pytest.approx(second.score, rel=1e-6)


def test_a_server_with_the_same_model_gives_the_same_score(samples, loopback, judge, tmp_path):
    """The whole way of the protocol: pictures as data URLs there, probabilities of tokens back."""
    model = MultimodalModel.load(Model(path=PROXY["model"], dtype="float64"), "proxy")

    def serve(body: dict[str, Any], n: int) -> Any:
        parts = body["messages"][0]["content"]
        urls = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
        images = tuple(ImageRef(data=base64.b64decode(url.split(",")[1])) for url in urls)
        text = "".join("<image>" if p["type"] == "image_url" else p["text"] for p in parts)
        probabilities = by_hand(model, Sample("s", (Turn("user", text),), images), ("yes", "no", "digit"))
        top = list(zip(("yes", "no", "digit"), probabilities.log().tolist(), strict=True))
        return says("digit", [top], ["digit"])

    remote = judge(loopback(serve).url, rubric=RUBRIC, mode="logprobs", min_mass=0.0)
    pool = samples("pool")[:5]
    there, here = remote.judge(pool, CPU), local().judge(pool, CPU)
    assert [o.score for o in there] == pytest.approx([o.score for o in here], rel=1e-6)


def test_through_a_run(settings):
    options = PROXY | {"dtype": "float32", "tokens_per_batch": 300}
    selection = ostlight.select(settings(selector={"name": "llm_judge", "options": options}), "budget.threshold=0.5")
    rows = read_score_table(selection.folder.scores).to_pylist()
    assert len(rows) == 48
    assert {r["position"] for r in rows if r["score"] >= 0.5} == set(selection.kept.tolist())
    assert all(sum(r["judge_probabilities"]) == pytest.approx(1) for r in rows)
    entry = selection.folder.cost_log.read()[0]
    assert entry.calls == 0
    assert entry.flops > 0
    assert entry.tokens_in > 48 * 10


def test_a_judge_that_says_something_else_stops_the_run(settings):
    options = PROXY | {"min_mass": 0.5}
    with pytest.raises(SelectorError, match="no judgement on any of the first 20 records.*the scale's words hold"):
        ostlight.select(settings(selector={"name": "llm_judge", "options": options}))


def test_a_prompt_that_is_too_long_or_a_broken_picture_is_a_state(samples):
    good, other = samples("pool")[:2]
    long = Sample("long", (Turn("user", "<image>" + "why " * 200), Turn("assistant", "so", True)), good.images)
    broken = Sample("broken", other.turns, (ImageRef(data=b"no picture"),))
    outcomes = local(max_length=150).judge([long, good, broken], CPU)
    assert isinstance(outcomes[1], Judgement)
    assert [o.reason for o in outcomes if isinstance(o, BadRecord)] == ["judge_prompt_too_long", "corrupt_image"]


def test_words_the_tokenizer_cannot_tell_apart_are_refused():
    scale = [Band("great", 1), Band("grim", 0)]
    with pytest.raises(SelectorError, match="'great' and 'grim' of the scale begin with the same token"):
        local(Rubric(scale=scale))
    with pytest.raises(SelectorError, match="does not know the word '☃'"):
        local(Rubric(scale=[Band("☃", 1), Band("no", 0)]))
    tokenizer = local().model.encoder.tokenizer
    assert word_ids(tokenizer, ["yes", "no"]) == [[tokenizer.convert_tokens_to_ids(w)] for w in ("yes", "no")]
