"""From a reply to a score, or to the reason why not."""

from __future__ import annotations

import dataclasses
import math

import pytest

from ostlight.errors import BadRecord
from ostlight_selectors.llm_judge.reply import Reply, judgement, schema, score_place, word_logprobs
from ostlight_selectors.llm_judge.rubric import Band, Rubric

FIVE = Rubric.read("correctness")
YES_NO = Rubric.read("yes_no")


def read(text: str, rubric: Rubric = FIVE, mode: str = "reply", **parts):
    return judgement(Reply(text, **parts), rubric, mode, min_mass=0.5)


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        ('{"reason": "fine", "score": 4}', 4, "fine"),
        ('Here it is:\n```json\n{"score": "4", "reason": "fine"}\n```', 4, "fine"),
        ('<think>{"score": 1}, or so</think>{"score": 5.0, "reason": "a } brace"}', 5, "a } brace"),
        ('First {"score": 2} but then {"score": 3, "reason": "second thought"}', 3, "second thought"),
        ('{"score": 1}', 1, None),
    ],
)
def test_replies_that_can_be_read(text: str, score: float, reason: str | None):
    found = read(text)
    assert (found.score, found.reason, found.text, found.mode) == (score, reason, text, "reply")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"reason": "half of it", "sco', "no JSON object with a score"),
        ("", "no JSON object with a score"),
        ("I would say 4", "no JSON object with a score"),
        ('{"points": 4}', "no JSON object with a score"),
        ('{"score": 7}', "the score 7 is not on the scale 1, 2, 3, 4, 5"),
        ('{"score": 4.5}', "the score 4.5 is not on the scale"),
        ('{"score": true}', "the score true is not on the scale"),
        ('{"score": NaN}', "the score NaN is not on the scale"),
        ('{"score": null}', "the score null is not on the scale"),
        ('{"score": [4]}', r"the score \[4\] is not on the scale"),
        ('{"score": 4, "reason": {"a": 1}}', "the reason is dict, not text"),
        ('{"a":' * 3_000, "no JSON object with a score"),
    ],
)
def test_a_reply_that_cannot_be_read_is_a_state_with_its_text(text: str, says: str):
    with pytest.raises(BadRecord, match=says) as caught:
        read(text)
    assert caught.value.reason == "reply_unparsable"
    assert repr(text[:4000])[1:-1] in caught.value.detail


def test_a_cut_reply_says_so():
    with pytest.raises(BadRecord, match="it was cut at max_tokens"):
        read('{"reason": "well', finish="length")


@pytest.mark.parametrize(
    "text",
    [
        'The format is {"reason": "...", "score": 1}. Now look: the final answer is right. Let me check the ste',
        '{"score": 1} On reflection that is wrong: {"reason": "it is ri',
    ],
)
def test_a_score_that_more_was_to_follow_is_no_score(text: str):
    with pytest.raises(BadRecord, match="cut at max_tokens, behind a score that was a draft"):
        read(text, finish="length")
    assert read(text).score == 1
    assert read('```json\n{"reason": "fine", "score": 4}\n```\n', finish="length").score == 4


def test_probabilities_of_another_score_than_the_one_written_are_not_taken():
    logprobs = {"1": math.log(0.97), "2": math.log(0.03)}
    text = '{"score": 5, "reason": "a low score: 1 would be unfair"}'
    other = read(text, mode="auto", logprobs=logprobs, scored_as="1")
    assert (other.score, other.mode) == (5, "reply")
    same = read('{"reason": "no", "score": 1}', mode="auto", logprobs=logprobs, scored_as="1")
    assert (same.score, same.mode) == (pytest.approx(1.03), "logprobs")


def scale_of(*words: str) -> Rubric:
    scale = [Band(word, means=word, value=float(k)) for k, word in enumerate(words)]
    return dataclasses.replace(YES_NO, scale=scale)


def test_a_word_of_several_tokens_counts_by_its_first():
    top = [("correct", math.log(0.52)), ("in", math.log(0.48))]
    logprobs = word_logprobs(top, scale_of("incorrect", "correct"))
    assert logprobs == pytest.approx({"correct": math.log(0.52), "incorrect": math.log(0.48)})
    top = [("-", math.log(0.45)), ("1", math.log(0.35)), ("0", math.log(0.2))]
    logprobs = word_logprobs(top, scale_of("-1", "0", "1"))
    assert logprobs == pytest.approx({"-1": math.log(0.45), "1": math.log(0.35), "0": math.log(0.2)})
    assert word_logprobs([("part", math.log(0.9))], scale_of("partly wrong", "partly right")) == {}


@pytest.mark.parametrize("parts", [{"refusal": "I cannot help with that"}, {"finish": "content_filter"}])
def test_a_refusal_is_a_state_even_with_a_score(parts: dict):
    with pytest.raises(BadRecord, match="the judge refuses") as caught:
        read('{"score": 4}', **parts)
    assert caught.value.reason == "reply_refused"


def test_the_expected_score_is_the_mean_over_the_scales_words():
    top = [(" 4", math.log(0.4)), ("4", math.log(0.1)), ("5", math.log(0.3)), ("maybe", math.log(0.2))]
    logprobs = word_logprobs(top, FIVE)
    assert logprobs == pytest.approx({"4": math.log(0.5), "5": math.log(0.3)})
    found = read("4", mode="logprobs", logprobs=logprobs)
    assert found.score == pytest.approx((0.5 * 4 + 0.3 * 5) / 0.8)
    assert found.mass == pytest.approx(0.8)
    assert found.probabilities == pytest.approx([0, 0, 0, 0.625, 0.375])
    both = read('{"reason": "fine", "score": 4}', mode="auto", logprobs=logprobs)
    assert (both.score, both.reason, both.mode) == (found.score, "fine", "logprobs")


def test_too_little_mass_is_no_score_and_missing_probabilities_are_none():
    little = {"yes": math.log(0.2), "no": math.log(0.1)}
    with pytest.raises(BadRecord, match="the scale's words hold 0.3 of the probability, below 0.5") as caught:
        read("perhaps", YES_NO, "logprobs", logprobs=little)
    assert caught.value.reason == "reply_unparsable"
    with pytest.raises(BadRecord) as caught:
        read("yes", YES_NO, "logprobs")
    assert caught.value.reason == "no_logprobs"
    # In auto the score as written stands in for them, and the mode says so.
    assert read('{"score": "YES"}', YES_NO, "auto", logprobs=little).mode == "reply"
    assert read('{"score": "yes"}', YES_NO, "auto").score == 1


def test_the_score_is_found_among_the_tokens():
    tokens = ['{"', "reason", '":', ' "', "score", ":", " 3", " of", " 5", '",', ' "', "score", '":', " ", "4", "}"]
    assert score_place(tokens, FIVE, one_word=False) == 14
    assert score_place(["\n", "Ġyes", "."], YES_NO, one_word=True) == 1
    assert score_place(['{"', "score", '":', ' "', "no", '"}'], YES_NO, one_word=False) == 4
    assert score_place(["4", " of", " 5"], FIVE, one_word=False) is None
    assert score_place([], FIVE, one_word=True) is None


def test_the_schema_is_the_scale():
    assert schema(FIVE)["properties"]["score"] == {"type": "integer", "enum": [1, 2, 3, 4, 5]}
    assert schema(YES_NO)["properties"]["score"] == {"type": "string", "enum": ["yes", "no"]}
    assert list(schema(FIVE)["properties"]) == ["reason", "score"]


def test_a_scale_of_which_one_word_begins_another_is_known():
    assert FIVE.has_distinct_first_tokens
    ten = Rubric(scale=[Band(str(n)) for n in range(11)])
    assert not ten.has_distinct_first_tokens


def test_a_thought_that_the_template_began_is_no_reply():
    draft = 'I could say {"reason": "draft", "score": 2} but wait, it is right.</think>\n'
    assert read(draft + '{"reason": "right", "score": 4}').score == 4
    with pytest.raises(BadRecord, match="reply_unparsable"):
        read(draft + "The answer is correct.")
    assert read('<think>{"score": 2}</think>{"reason": "r", "score": 5}').score == 5
