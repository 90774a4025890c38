"""A judge behind an address, against a server that misbehaves in every way we know of."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import time

import pytest
import torch
from judge_server import Send, says, scored
from PIL import Image

from ostlight.data.sample import ImageRef, Sample, Turn
from ostlight.errors import BadRecord, SelectorError
from ostlight_selectors.llm_judge import protocol
from ostlight_selectors.llm_judge.options import Price

CPU = torch.device("cpu")


def sample(n: int = 0, *images: ImageRef) -> Sample:
    question = Turn("user", "<image>" * len(images) + f"what is {n}+1?")
    return Sample(str(n), (question, Turn("assistant", str(n + 1), trained=True)), images, position=n)


def one(judge, *arguments):
    return judge.judge([sample(*arguments)], CPU)[0]


def test_a_good_reply_and_what_it_cost(loopback, judge):
    server = loopback(lambda body, n: scored(4))
    asked = judge(server.url, price=Price(2.0, 10.0))
    found = one(asked)
    assert (found.score, found.reason, found.mode) == (4, "so it is", "reply")
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 512)
    assert body["response_format"]["json_schema"]["schema"]["properties"]["score"]["enum"] == [1, 2, 3, 4, 5]
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
    usage = asked.server._usage
    assert (usage.calls, usage.tokens_in, usage.tokens_out) == (1, 100, 10)
    assert usage.price == pytest.approx((100 * 2 + 10 * 10) / 1e6)


def test_pictures_go_as_data_urls_at_their_place(loopback, judge, tmp_path):
    server = loopback(lambda body, n: scored(4))
    jpeg, bitmap = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(jpeg, "JPEG")
    Image.new("RGB", (8, 8), "blue").save(bitmap, "BMP")
    pictures = ImageRef(data=jpeg.getvalue()), ImageRef(data=bitmap.getvalue())
    assert judge(server.url).judge([sample(0, *pictures)], CPU)[0].score == 4
    parts = server.bodies[0]["messages"][1]["content"]
    assert [p["type"] for p in parts] == ["text", "image_url", "image_url", "text"]
    urls = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
    # What servers read goes as it is; a bitmap becomes a PNG of the same picture.
    assert urls[0] == "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
    assert urls[1].startswith("data:image/png;base64,")
    sent = Image.open(io.BytesIO(base64.b64decode(urls[1].split(",")[1])))
    assert sent.convert("RGB").getpixel((3, 3)) == (0, 0, 255)


def test_a_broken_picture_is_never_sent(loopback, judge):
    server = loopback(lambda body, n: scored(4))
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    half = ImageRef(data=buffer.getvalue()[: len(buffer.getvalue()) // 2])
    bad = judge(server.url).judge([sample(0, half)], CPU)[0]
    assert isinstance(bad, BadRecord)
    assert bad.reason == "corrupt_image"
    assert not server.bodies


PASSING = {
    "429": Send({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.05"}),
    "500": Send({"error": {"message": "oops"}}, 500),
    "503": Send(None, 503),
    "slow": Send({}, delay_s=0.6),
    "half a body": Send(scored(4).body, cut=True),
    "an error in disguise": Send({"error": {"message": "upstream is gone"}}),
    "reset": Send(reset=True),
    "no choices": Send({"choices": []}),
    "a list": Send([1, 2]),
}


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_by_itself_is_tried_again(loopback, judge, fault: str):
    server = loopback(lambda body, n: PASSING[fault] if n < 2 else scored(4))
    assert one(judge(server.url, timeout_s=0.2)).score == 4
    assert len(server.bodies) == 3


def test_what_does_not_pass_is_a_state_after_all_tries(loopback, judge):
    poisoned = "what is 3+1?"
    server = loopback(lambda body, n: PASSING["500"] if poisoned in json.dumps(body) else scored(4))
    asked = judge(server.url)
    outcomes = asked.judge([sample(n) for n in range(6)], CPU)
    assert [type(o).__name__ for o in outcomes] == ["Judgement"] * 3 + ["BadRecord"] + ["Judgement"] * 2
    assert outcomes[3].reason == "request_failed"
    assert "given up after 4 tries; the last: status 500" in outcomes[3].detail
    assert "oops" in outcomes[3].detail
    assert asked.server._usage.calls == 5, "nobody charges for a 500"


def test_an_error_nobody_thought_of_fails_one_record_alone(loopback, judge, monkeypatch):
    server = loopback(lambda body, n: scored(4))
    asked = judge(server.url)
    ask = asked.server.ask

    def fails_on_three(messages):
        if "what is 3+1?" in json.dumps(messages):
            raise ZeroDivisionError("division by zero")
        return ask(messages)

    monkeypatch.setattr(asked.server, "ask", fails_on_three)
    outcomes = asked.judge([sample(n) for n in range(6)], CPU)
    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, BadRecord)] == [3]
    assert outcomes[3].reason == "request_failed"
    assert "ZeroDivisionError: division by zero" in outcomes[3].detail
    assert asked.judge([sample(7)], CPU)[0].score == 4


def test_an_answer_is_bounded_in_time_and_in_bytes(loopback, judge, monkeypatch):
    """A server that trickles bytes keeps every single read short."""
    monkeypatch.setattr("ostlight_selectors.llm_judge.server.MAX_ANSWER_BYTES", 2000)
    long = scored(4, reason="x" * 3000)
    bad = one(judge(loopback(lambda body, n: long).url, max_retries=1))
    assert bad.reason == "request_failed"
    assert "more than 2,000 bytes" in bad.detail
    began = time.monotonic()
    server = loopback(lambda body, n: Send(scored(4, reason="y" * 100).body, trickle_s=0.02))
    bad = one(judge(server.url, max_retries=0, timeout_s=0.4))
    assert bad.reason == "request_failed"
    assert time.monotonic() - began < 3


def test_a_compressed_answer_was_not_asked_for(loopback, judge):
    bad = one(judge(loopback(lambda body, n: Send({}, headers={"Content-Encoding": "gzip"})).url, max_retries=0))
    assert bad.reason == "request_failed"
    assert "compressed" in bad.detail


def test_what_could_not_be_read_is_not_stored(loopback, judge):
    """The next run asks again; what could be read is not asked for twice."""
    server = loopback(lambda body, n: says("no idea") if n < 3 else scored(4))
    assert one(judge(server.url)).reason == "reply_unparsable"
    assert one(judge(server.url)).score == 4
    assert one(judge(server.url)).score == 4
    assert len(server.bodies) == 4


def test_a_wait_the_server_asks_for_is_kept_to(loopback, judge):
    times: list[float] = []

    def script(body, n):
        times.append(time.monotonic())
        return Send(None, 429, {"Retry-After": "0.3"}) if n == 0 else scored(4)

    assert one(judge(loopback(script).url)).score == 4
    assert times[1] - times[0] >= 0.3


UNUSABLE = {
    "half a JSON": ('{"reason": "half', "reply_unparsable", "no JSON object"),
    "wrong schema": ('{"points": 9}', "reply_unparsable", "no JSON object with a score"),
    "off the scale": ('{"score": 11}', "reply_unparsable", "is not on the scale"),
    "nothing": (None, "reply_unparsable", "no JSON object"),
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_an_unusable_reply_is_asked_again_then_rejected_with_its_text(loopback, judge, fault: str):
    text, reason, says_what = UNUSABLE[fault]
    server = loopback(lambda body, n: says(text))
    bad = one(judge(server.url))
    assert bad.reason == reason
    assert says_what in bad.detail
    assert repr(text or "")[1:-1] in bad.detail
    assert len(server.bodies) == 3
    second = server.bodies[1]["messages"][-1]["content"]
    assert second.index("Your last reply was:\n---") < second.index(f"begins ---\n{text or ''}\n---")
    assert says_what in second

    recovering = loopback(lambda body, n: says(text) if n == 0 else scored(2))
    assert one(judge(recovering.url, temperature=0.5)).score == 2


def test_a_refusal_is_asked_again_then_rejected_with_its_text(loopback, judge):
    server = loopback(lambda body, n: says(None, refusal="I would rather not"))
    bad = one(judge(server.url))
    assert (bad.reason, len(server.bodies)) == ("reply_refused", 3)
    assert "I would rather not" in bad.detail


def test_the_expected_score_of_a_json_reply(loopback, judge):
    tokens = ['{"', "score", '":', " ", "4", "}"]
    top = [[(t, 0.0)] for t in tokens]
    top[4] = [("4", math.log(0.5)), ("2", math.log(0.25)), (" maybe", math.log(0.25))]
    server = loopback(lambda body, n: says("".join(tokens), top, tokens))
    found = one(judge(server.url))
    assert found.mode == "logprobs"
    assert found.score == pytest.approx((0.5 * 4 + 0.25 * 2) / 0.75)
    plain = one(judge(server.url, mode="reply"))
    assert (plain.score, plain.mode) == (4, "reply")
    assert "logprobs" not in server.bodies[-1]


def test_one_word_and_its_probabilities(loopback, judge):
    top = [("yes", math.log(0.75)), (" No", math.log(0.25))]
    server = loopback(lambda body, n: says("yes", [top], ["yes"]))
    found = one(judge(server.url, rubric="yes_no", mode="logprobs"))
    assert (found.score, found.mode) == (pytest.approx(0.75), "logprobs")
    body = server.bodies[0]
    assert body["max_tokens"] == protocol.ONE_WORD
    assert "response_format" not in body
    without = loopback(lambda body, n: says("yes"))
    assert one(judge(without.url, rubric="yes_no", mode="logprobs", temperature=0.1)).reason == "no_logprobs"


@pytest.mark.parametrize("refused", [("response_format",), ("logprobs",), ("response_format", "logprobs")])
def test_what_a_server_does_not_know_is_left_out_and_logged_once(loopback, judge, refused, logged):
    def script(body, n):
        unknown = next((name for name in refused if name in body), None)
        return Send({"error": {"message": f"unknown field {unknown}"}}, 400) if unknown else scored(4)

    server = loopback(script)
    asked = judge(server.url)
    assert one(asked).score == 4
    tries = len(server.bodies)
    assert one(asked, 1).score == 4
    assert len(server.bodies) == tries + 1, "what it refuses is not tried twice"
    assert [line.split(" refuses ")[1].split(":")[0] for line in logged().splitlines()] == list(refused)


def test_five_probabilities_where_twenty_are_too_many(loopback, judge, logged):
    server = loopback(lambda body, n: Send({"error": "too many"}, 400) if body["top_logprobs"] > 5 else scored(4))
    assert one(judge(server.url)).score == 4
    assert server.bodies[-1]["top_logprobs"] == 5
    assert "response_format" in server.bodies[-1]
    assert not logged()


def test_a_record_the_server_refuses_is_rejected_and_the_rest_goes_on(loopback, judge):
    long = "what is 2+1?"
    server = loopback(
        lambda body, n: Send({"error": {"message": "too long"}}, 400) if long in json.dumps(body) else scored(4)
    )
    outcomes = judge(server.url).judge([sample(n) for n in range(4)], CPU)
    assert outcomes[2].reason == "request_failed"
    assert "status 400" in outcomes[2].detail
    assert "too long" in outcomes[2].detail
    assert [o.score for k, o in enumerate(outcomes) if k != 2] == [4, 4, 4]


@pytest.mark.parametrize(
    ("status", "body", "fix"),
    [
        (401, {"error": {"message": "no such key"}}, "api_key_env"),
        (404, {"error": {"message": "no model m"}}, "check selector.options.base_url .* and model"),
        (429, {"error": {"message": "insufficient_quota"}}, "the account is exhausted"),
    ],
)
def test_what_no_request_can_avoid_stops_the_run(loopback, judge, status: int, body: dict, fix: str):
    server = loopback(lambda _, n: Send(body, status))
    with pytest.raises(SelectorError, match=f"refuses every request, status {status}.*{fix}"):
        judge(server.url).judge([sample(n) for n in range(50)], CPU)
    assert len(server.bodies) < 20


def test_an_outage_stops_the_run_and_loses_nothing(loopback, judge):
    server = loopback(lambda body, n: scored(4) if n < 5 else Send(None, 503))
    with pytest.raises(
        SelectorError, match=r"\d\d requests in a row were given up.*status 503.*run the same command again"
    ):
        judge(server.url, concurrency=1, max_retries=0).judge([sample(n) for n in range(50)], CPU)
    well = loopback(lambda body, n: scored(4))
    outcomes = judge(well.url).judge([sample(n) for n in range(50)], CPU)
    assert {o.score for o in outcomes} == {4}
    assert len(well.bodies) == 45


def test_concurrency_is_bounded_and_the_order_is_kept(loopback, judge):
    server = loopback(
        lambda body, n: Send(
            scored(1 + int(re.search(r"what is (\d)", body["messages"][1]["content"])[1]) % 5).body, delay_s=0.05
        )
    )
    outcomes = judge(server.url, concurrency=6).judge([sample(n) for n in range(10)], CPU)
    assert [o.score for o in outcomes] == [1 + n % 5 for n in range(10)]
    assert server.busiest == 6


def test_the_same_question_is_asked_once(loopback, judge):
    server = loopback(lambda body, n: Send(scored(4).body, delay_s=0.1))
    assert {o.score for o in judge(server.url).judge([sample(1)] * 8, CPU)} == {4}
    assert len(server.bodies) == 1
    judge(server.url).judge([sample(1), sample(2)], CPU)
    assert len(server.bodies) == 2


def test_no_key_of_the_environment_is_carried_to_a_server_it_was_not_meant_for(loopback, judge, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "sk-not-for-you")
    server = loopback(lambda body, n: scored(4))
    one(judge(server.url))
    one(judge(server.url, key="sk-for-you"), 1)
    assert server.authorizations == ["Bearer none", "Bearer sk-for-you"]
