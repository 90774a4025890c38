"""Answers as servers have given them, and as none should."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch
from judge_server import Send, scored

from ostlight.data.sample import Sample, Turn
from ostlight.errors import BadRecord
from ostlight_selectors.llm_judge.options import JudgeOptions
from ostlight_selectors.llm_judge.protocol import one_line, optional_fields, read_answer, request_of
from ostlight_selectors.llm_judge.reply import Judgement, Reply, judgement
from ostlight_selectors.llm_judge.reply_store import ReplyStore
from ostlight_selectors.llm_judge.rubric import Rubric

FIVE = Rubric.read("correctness")
CPU = torch.device("cpu")
SAMPLE = Sample("s", (Turn("user", "1+1?"), Turn("assistant", "2", trained=True)))


def answer(text: Any, usage: Any = None, logprobs: Any = None, **message: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
    return {"choices": [choice | {"logprobs": logprobs}], "usage": usage}


def judged(text: Any, **parts: Any) -> float:
    return judgement(read_answer(answer(text, **parts), FIVE, one_word=False), FIVE, "auto", 0.5).score


READABLE = {
    "plain": '{"reason": "fine", "score": 4}',
    "fenced": '```json\n{"reason": "fine", "score": 4}\n```',
    "fenced, text around it": 'Sure!\n```\n{"reason": "fine", "score": 4}\n```\nHope that helps.',
    "LaTeX": r'{"reason": "\(x = \frac{1}{2}\) and \sqrt{2}", "score": 4}',
    "LaTeX with braces before it": r"By \frac{a}{b} and \left\{x\right\} " * 200 + '{"reason": "", "score": 4}',
    "a number in quotes": '{"reason": "fine", "score": "4.0"}',
    "a float": '{"reason": "fine", "score": 4.0}',
    "a word with blanks": '{"reason": "fine", "score": " 4 "}',
    "a line break in a string": '{"reason": "one\ntwo", "score": 4}',
    "a tab and a bell in a string": '{"reason": "one\ttwo\a", "score": 4}',
    "a lone surrogate": '{"reason": "\ud800", "score": 4}',
    "a null character": '{"reason": "a\0b", "score": 4}',
    "a brace in a string": '{"reason": "} {", "score": 4}',
    "a quote in a string": r'{"reason": "say \"4\" or }", "score": 4}',
    "thoughts": '<think>{"score": 1}</think>{"reason": "", "score": 4}',
    "thoughts whose beginning is in the prompt": 'hm {"score": 1}</think>{"reason": "", "score": 4}',
    "in parts": [{"type": "text", "text": '{"reason": "",'}, {"type": "text", "text": '"score": 4}'}],
    "a byte order mark": '\ufeff{"reason": "", "score": 4}',
    "nested": '{"reason": "", "details": {"a": {"b": 1}}, "score": 4}',
}


@pytest.mark.parametrize("name", READABLE)
def test_a_score_is_read_and_its_reply_stored(name: str, loopback, judge, tmp_path):
    assert judged(READABLE[name]) == 4
    body = json.dumps(answer(READABLE[name])).encode("utf-8", "surrogatepass")
    server = loopback(lambda sent, n: Send(body))
    for _ in range(2):
        (found,) = judge(server.url).judge([SAMPLE], CPU)
        assert isinstance(found, Judgement)
        assert found.score == 4
        found.text.encode()
    assert len(server.bodies) == 1


COUNTS = {"1e999": 0, "-5": 0, "1e300": 0, "NaN": 0, "true": 0, '"7"': 0, "null": 0, "[1]": 0, "7": 7, "7.0": 7}


@pytest.mark.parametrize("count", COUNTS)
def test_token_counts_that_are_none_count_nothing(count: str):
    given = json.loads(f'{{"prompt_tokens": {count}, "completion_tokens": 3}}')
    found = read_answer(answer("x", usage=given), FIVE, one_word=False)
    assert (found.tokens_in, found.tokens_out) == (COUNTS[count], 3)
    assert read_answer(answer("x", usage=[given]), FIVE, one_word=False).tokens_in == 0


def listed(*top: tuple[Any, Any]) -> dict[str, Any]:
    tokens = ['{"score": ', "4"]
    entries = [{"token": token, "logprob": logprob} for token, logprob in top]
    return {"content": [{"token": token, "logprob": 0.0, "top_logprobs": entries} for token in tokens]}


def test_log_probabilities_that_are_none_are_not_believed():
    """The score as written is taken instead."""
    text = '{"score": 4}'
    assert judged(text, logprobs=listed(("4", -0.7), ("2", -0.7))) == pytest.approx(3)
    for wrong in (1000, 1e308, "x", None, True, float("nan"), [0.1], float("inf"), -(10**400)):
        assert judged(text, logprobs=listed(("4", wrong), ("2", -0.7))) == 4
    assert judged(text, logprobs=listed(("4", 0.0), ("2", 0.0))) == 4, "two certain words"
    for malformed in ([], "x", {"content": "x"}, {"content": [1]}, {"content": [{"token": 4}]}):
        assert judged(text, logprobs=malformed) == 4


@pytest.mark.parametrize(
    "given",
    [None, [], "x", 4, {}, {"choices": []}, {"choices": [None]}, {"choices": [{}]}, {"choices": {"0": 1}},
     {"choices": [{"message": "x"}]}, {"choices": [{"message": {"content": 4}}]},
     {"choices": [{"message": {"content": [1]}}]}],
)  # fmt: skip
def test_what_is_no_answer_is_an_error_of_the_protocol(given: Any):
    with pytest.raises(ValueError, match="Error: "):
        read_answer(given, FIVE, one_word=False)


HOSTILE = {
    "open braces": "{" * 200_000,
    "open objects": '{"a":' * 50_000,
    "open thoughts": "<think>" * 30_000,
    "escaped quotes": '{"' + '\\"' * 100_000,
    "escaped quotes and a backslash": '{"' + '\\"' * 100_000 + "\\",
    "quotes": '{"' * 100_000,
    "balanced and nested": "{" * 50_000 + "}" * 50_000,
    "backslashes": '{"score": "' + "\\" * 100_000 + '"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_reading_takes_linear_time(name: str):
    began = time.process_time()
    with pytest.raises(BadRecord) as caught:
        judgement(Reply(HOSTILE[name]), FIVE, "reply", 0.5)
    assert caught.value.reason == "reply_unparsable"
    assert time.process_time() - began < 3


def test_the_key_is_removed_before_a_text_is_cut():
    key = "sk-" + "k" * 300
    assert "kkk" not in one_line("x" * 350 + key, key)
    found = read_answer(answer("a", refusal=f"no {key}") | {}, FIVE, one_word=False, key=key)
    assert found.refusal == "no [key]"
    with pytest.raises(ValueError, match="KeyError") as caught:
        read_answer({"error": "x" * 450 + key}, FIVE, one_word=False, key=key)
    assert "kkk" not in str(caught.value)


def test_fields_of_ones_own_replace_those_of_the_request():
    options = JudgeOptions(
        model="m", extra_body={"max_tokens": None, "max_completion_tokens": 9, "response_format": None}
    )
    assert request_of(options) == {"model": "m", "temperature": 0.0, "max_completion_tokens": 9}
    assert all("response_format" not in fields for fields in optional_fields(options, FIVE))


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b'{"key": "a"}', b'{"key": "a", "text": 4}', b'{"key": "a", "text": "x", "new": 1}',
     b'{"key": "a", "text": "x", "logprobs": {"4": "y"}}', b'{"key": 3, "text": "x"}', b"\xff\xfe", b"null"],
)  # fmt: skip
def test_a_damaged_line_of_the_store_is_asked_for_again(line: bytes, tmp_path):
    (tmp_path / "replies-000.jsonl").write_bytes(line + b"\n")
    store = ReplyStore(tmp_path, 0)
    assert len(store) == 0
    assert store.get("a", lambda: Reply("new")) == Reply("new")
    assert ReplyStore(tmp_path, 0).get("a", lambda: Reply("never")) == Reply("new")


def test_a_judge_with_a_good_reply_goes_on(loopback, judge):
    """One poisoned reply keeps no other from being judged, now or on a rerun."""
    poison = json.dumps(answer("x")).replace('"usage": null', '"usage": {"prompt_tokens": 1e999}').encode()
    server = loopback(lambda body, n: Send(poison) if "0+1" in json.dumps(body) else scored(4))
    samples = [Sample(str(n), (Turn("user", f"{n}+1?"), Turn("assistant", "2", trained=True))) for n in range(4)]
    for _ in range(2):
        outcomes = judge(server.url, max_reasks=0).judge(samples, CPU)
        assert [isinstance(outcome, Judgement) for outcome in outcomes] == [False, True, True, True]
