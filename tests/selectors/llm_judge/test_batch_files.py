"""A judge that is asked by files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from judge_server import says, scored

import ostlight
from ostlight.errors import PendingError
from ostlight.selection.scores import read_score_table

CHOICE = {"name": "llm_judge", "options": {"backend": "batch", "model": "m", "price": {"input": 1.0, "output": 2.0}}}


def requests_in(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("requests-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def reply(request: dict[str, Any], send: Any, status: int = 200, error: Any = None) -> str:
    response = {"status_code": status, "request_id": "r", "body": send.body}
    return json.dumps({"id": "b", "custom_id": request["custom_id"], "response": response, "error": error}) + "\n"


def asks(settings) -> Path:
    """Runs, and returns the folder of requests that wait."""
    with pytest.raises(PendingError, match="requests wait for replies: send .*requests-") as caught:
        ostlight.select(settings(selector=CHOICE))
    return Path(str(caught.value).split("send ")[1].split("/requests-")[0])


def test_requests_go_out_and_replies_come_in(settings):
    folder = asks(settings)
    requests = requests_in(folder)
    assert len(requests) == 48
    assert {(r["method"], r["url"], r["body"]["model"]) for r in requests} == {("POST", "/v1/chat/completions", "m")}
    assert requests[0]["body"]["response_format"]["type"] == "json_schema"
    assert len({r["custom_id"] for r in requests}) == 48

    # Half of the replies, one of them unusable, one an error: the others and these two are asked for again.
    lines = [reply(r, scored(1 + k % 5)) for k, r in enumerate(requests[:24])]
    lines[3] = reply(requests[3], says("no idea"))
    lines[4] = reply(requests[4], says(None), 500, {"message": "busy"})
    (folder / "first.jsonl").write_text("".join(lines) + "{cut")
    assert asks(settings) == folder
    again = requests_in(folder)
    assert len(again) == 26
    (second,) = [r for r in again if "Your last reply was" in json.dumps(r)]
    assert second["custom_id"] not in {r["custom_id"] for r in requests}
    assert requests[4]["custom_id"] in {r["custom_id"] for r in again}

    (folder / "second.jsonl").write_text("".join(reply(r, scored(4)) for r in again))
    selection = ostlight.select(settings(selector=CHOICE), "budget.threshold=4")
    table = read_score_table(selection.folder.scores)
    assert table["score"].null_count == 0
    assert selection.rejected == {}
    assert not requests_in(folder)
    assert sum(entry.price for entry in selection.folder.cost_log.read()) > 0


def test_what_stays_unusable_is_a_state(settings):
    folder = asks(settings)
    for round_number in range(3):
        lines = [reply(r, says("no idea") if k == 0 else scored(4)) for k, r in enumerate(requests_in(folder))]
        (folder / f"{round_number}.jsonl").write_text("".join(lines))
        if round_number < 2:
            asks(settings)
            assert len(requests_in(folder)) == 1
    assert ostlight.select(settings(selector=CHOICE)).rejected == {"reply_unparsable": 1}


def test_files_are_no_larger_than_an_api_takes(settings, monkeypatch):
    monkeypatch.setattr("ostlight_selectors.llm_judge.batch_files.MOST_REQUESTS", 20)
    folder = asks(settings)
    sizes = [len(file.read_text().splitlines()) for file in sorted(folder.glob("requests-*.jsonl"))]
    assert sizes == [20, 20, 8]


def test_a_record_that_always_fails_holds_nobody_up(settings):
    folder = asks(settings)
    poisoned = requests_in(folder)[0]["custom_id"]
    for round_number in range(3):
        bad = {"message": "maximum context length"}
        lines = [
            reply(r, says(None), 400, bad) if r["custom_id"] == poisoned else reply(r, scored(4))
            for r in requests_in(folder)
        ]
        (folder / f"{round_number}.jsonl").write_text("".join(lines))
        if round_number < 2:
            asks(settings)
            assert [r["custom_id"] for r in requests_in(folder)] == [poisoned]
    selection = ostlight.select(settings(selector=CHOICE))
    assert selection.rejected == {"request_failed": 1}
    (row,) = [r for r in read_score_table(selection.folder.scores).to_pylist() if r["state"] != "ok"]
    assert "failed 3 times; the last" in row["detail"]
