"""A judge through `ostlight select`: every record accounted for, the key nowhere, a killed run asked nothing twice."""

from __future__ import annotations

import collections
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from forks import run_script
from judge_server import Send, says, scored

import ostlight
from ostlight.data.sample import Sample, Turn
from ostlight.errors import ConfigError, RunChangedError, SelectorError
from ostlight.pipeline.scoring.writer import audit
from ostlight.selection.registry import create
from ostlight.selection.scores import read_score_table

KEY = "sk-very-secret-0123456789"


def choice(url: str, **options: Any) -> dict[str, Any]:
    return {"name": "llm_judge", "options": {"model": "m", "base_url": url, "max_retries": 2, **options}}


def by_length(body: dict[str, Any], n: int) -> Send:
    """A judge that can be checked: the score follows from the length of the answer."""
    text = body["messages"][1]["content"][-1]["text"]
    return scored(1 + len(text) % 5)


def broken_pool(digits: Any, path: Path) -> Path:
    """Five of 48 records broken, each in another way."""
    rows = pq.read_table(digits.pool).to_pylist()
    rows[3]["image"] = {"bytes": b"no picture", "path": None}
    rows[7]["conversations"][1]["value"] = ""
    rows[11]["id"] = rows[10]["id"]
    rows[20]["image"] = {"bytes": rows[20]["image"]["bytes"][:60], "path": None}
    rows[30]["conversations"] = []
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(digits.pool)), path)
    return path


def test_rejection_sampling_on_a_pool_with_a_tenth_broken(settings, digits, tmp_path, loopback):
    pool = broken_pool(digits, tmp_path / "pool.parquet")
    unreadable = [rows["id"] for rows in pq.read_table(digits.pool).to_pylist()][40:42]
    texts = {r["id"]: r["conversations"][1]["value"] for r in pq.read_table(digits.pool).to_pylist()}

    def script(body: dict[str, Any], n: int) -> Send:
        asked = json.dumps(body)
        return says("no idea") if any(json.dumps(texts[i])[1:-1] in asked for i in unreadable) else by_length(body, n)

    server = loopback(script)
    config = settings(pool={"path": str(pool)}, selector=choice(server.url, price={"input": 1.0, "output": 2.0}))
    selection = ostlight.select(config, "budget.threshold=4")
    rows = read_score_table(selection.folder.scores).to_pylist()
    rejected = [r for r in rows if r["state"] != "ok"]
    assert len(selection.kept) + selection.dropped + len(rejected) == 48
    assert selection.rejected["reply_unparsable"] >= 2
    assert selection.rejected["corrupt_image"] == 2
    assert sum(selection.rejected.values()) == len(rejected)
    assert all(r["score"] is None for r in rejected)
    kept = [rows[i] for i in selection.kept]
    assert kept
    assert all(r["score"] >= 4 for r in kept)
    assert sum(r["score"] is not None and r["score"] >= 4 for r in rows) == len(kept)
    assert {(r["judge_mode"], r["judge_reason"]) for r in kept} == {("reply", "so it is")}
    assert json.loads(kept[0]["judge_reply"])["score"] == kept[0]["score"]
    quarantined = pq.read_table(selection.folder.quarantine).to_pylist()
    assert all("no idea" in q["detail"] for q in quarantined if q["reason"] == "reply_unparsable")
    entry = selection.folder.cost_log.read()[0]
    assert entry.calls == len(server.bodies)
    assert (entry.tokens_in, entry.tokens_out) == (100 * entry.calls, 10 * entry.calls)
    assert entry.price == pytest.approx(entry.calls * (100 * 1 + 10 * 2) / 1e6)


def test_the_key_is_sent_and_stands_nowhere_else(settings, loopback, monkeypatch, capfd, caplog):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level("DEBUG")

    def script(body: dict[str, Any], n: int) -> Send:
        if n % 4 == 0:
            return Send({"error": {"message": f"bad request from {KEY}"}}, 400)
        if n % 4 == 1:
            return says(f"your key is {KEY}")
        return scored(3, reason=f"since {KEY} asks")

    server = loopback(script)
    selection = ostlight.select(settings(selector=choice(server.url, api_key_env="JUDGE_KEY")))
    assert set(server.authorizations) == {f"Bearer {KEY}"}
    assert selection.rejected["request_failed"] > 0
    files = [p for p in selection.folder.path.rglob("*") if p.is_file()]
    assert {"config.yaml", "manifest.json", "cost_log.jsonl", "quarantine.parquet"} <= {p.name for p in files}
    for file in files:
        content = file.read_bytes()
        if file.suffix == ".parquet":
            content += json.dumps(pq.read_table(file).to_pylist(), default=str).encode()
        assert KEY.encode() not in content, file
    printed = capfd.readouterr()
    assert KEY not in printed.out + printed.err + caplog.text
    assert "since [key] asks" in {r["judge_reason"] for r in read_score_table(selection.folder.scores).to_pylist()}

    refusing = loopback(lambda body, n: Send({"error": {"message": f"no such key {KEY}"}}, 401))
    with pytest.raises(SelectorError) as caught:
        ostlight.select(settings(name="refused", selector=choice(refusing.url, api_key_env="JUDGE_KEY")))
    assert KEY not in str(caught.value)


def test_a_judge_that_is_of_no_use_stops_before_the_whole_pool_is_paid_for(settings, loopback):
    server = loopback(lambda body, n: says("What a lovely picture!"))
    with pytest.raises(SelectorError, match="no judgement on any of the first 20 records.*What a lovely picture!"):
        ostlight.select(settings(selector=choice(server.url)))
    with pytest.raises(SelectorError, match="does not answer: .* requests in a row were given up.*Connection refused"):
        ostlight.select(settings(name="dead", selector=choice("http://127.0.0.1:9/v1", max_retries=0, concurrency=2)))


def test_a_failed_record_is_tried_again_by_the_next_run_and_no_other(settings, loopback):
    server = loopback(lambda body, n: says("no idea") if n < 6 else by_length(body, n))
    config = settings(selector=choice(server.url, concurrency=1, max_reasks=2))
    first = ostlight.select(config)
    assert first.rejected == {"reply_unparsable": 2}
    asked = len(server.bodies)
    second = ostlight.select(config)
    assert second.rejected == {}
    assert len(server.bodies) == asked + 2
    rows = read_score_table(second.folder.scores).to_pylist()
    assert all(row["state"] == "ok" for row in rows)
    assert len(ostlight.select(config).kept)
    assert len(server.bodies) == asked + 2


def test_records_that_the_server_always_refuses_do_not_end_every_later_run(settings, digits, loopback):
    refused = [row["conversations"][1]["value"] for row in pq.read_table(digits.pool).to_pylist()][40:42]

    def script(body: dict[str, Any], n: int) -> Send:
        asked = json.dumps(body)
        always = any(json.dumps(text)[1:-1] in asked for text in refused)
        return Send({"error": "no such content"}, 400) if always else by_length(body, n)

    config = settings(selector=choice(loopback(script).url))
    first = ostlight.select(config)
    assert first.rejected["request_failed"] >= 2
    again = ostlight.select(config, "budget.count=8")
    assert again.rejected == first.rejected
    assert len(again.kept) == 8


@pytest.mark.parametrize(
    ("options", "says_what"),
    [
        ({"backend": "vllm"}, "backend must be one of openai, batch, transformers; got 'vllm'"),
        ({"mode": "json"}, "mode must be one of auto, reply, logprobs; got 'json'"),
        ({"model": None}, "model is missing"),
        ({"backend": "transformers", "mode": "reply"}, "mode=reply needs backend=openai or batch"),
        ({"base_url": None}, "base_url is missing"),
        ({"base_url": "localhost:8000"}, "base_url must be an http or https address"),
        ({"base_url": f"http://me:{KEY}@host/v1"}, "put the key into an environment variable"),
        ({"concurrency": 0}, "concurrency must be a whole number, at least 1; got 0"),
        ({"price": {"input": -1.0}}, "price.input must be a number, at least 0; got -1.0"),
        ({"min_mass": 2.0}, "min_mass must be a number, at least 0 and at most 1; got 2.0"),
        ({"api_key_env": "NOT_SET_ANYWHERE"}, "names NOT_SET_ANYWHERE, which is not set"),
        ({"rubric": "nope"}, "no file 'nope'; shipped are: correctness, yes_no"),
        ({"prices": {}}, "unknown key 'selector.options.prices'; did you mean 'price'"),
    ],
)
def test_options_out_of_range(settings, options: dict, says_what: str):
    with pytest.raises((ConfigError, SelectorError), match=says_what) as caught:
        ostlight.select(settings(selector=choice("http://localhost:1/v1", **options)))
    assert KEY not in str(caught.value)


def test_a_missing_package_says_what_to_install(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(SelectorError, match=r"pip install 'ostlight\[judge\]'"):
        ostlight.select(settings(selector=choice("http://localhost:1/v1")))


def test_a_server_that_moved_is_the_same_judge_and_another_rubric_is_not(settings, loopback, tmp_path):
    rubric = tmp_path / "mine.yaml"
    text = "scale: [{word: 1}, {word: 2}, {word: 3}, {word: 4}, {word: 5}]\ncriteria: {all: be %s}\n"
    rubric.write_text(text % "strict")
    first, second = loopback(by_length), loopback(by_length)
    folder = ostlight.select(settings(selector=choice(first.url, rubric=str(rubric)))).folder
    (folder.scores / "part-000001.parquet").unlink()
    again = ostlight.select(settings(selector=choice(second.url, rubric=str(rubric), concurrency=3)))
    assert len(first.bodies) == 48
    assert not second.bodies
    assert again.rejected == {}
    rubric.write_text(text % "lenient")
    with pytest.raises(RunChangedError, match=r"changed: selector\.options\.rubric"):
        ostlight.select(settings(selector=choice(second.url, rubric=str(rubric))))


SELECT = """
import sys
from pathlib import Path
import ostlight
from forks import on_ranks
file, ranks, killed_after = sys.argv[1], *map(int, sys.argv[2:])
replies = Path(file).parent / "runs" / "killed" / "selector"


def answered():
    return sum(f.read_bytes().count(b"\\n") for f in replies.glob("replies-*.jsonl"))


ended = on_ranks(lambda: ostlight.select(file), ranks, lambda: killed_after and answered() >= killed_after)
assert ended is not bool(killed_after)
"""


def run_apart(settings, folder: Path, pool: Path, url: str, ranks: int, killed_after: int = 0) -> None:
    """Killed once so many replies are on disk; to the end without such a number."""
    config = settings(name="killed", pool={"path": str(pool)}, selector=choice(url, concurrency=8))
    several = {"devices": 2, "strategy": "ddp"} if ranks == 2 else {}
    file, script = folder / "judge.yaml", folder / "script.py"
    file.write_text(yaml.safe_dump(config | {"compute": config["compute"] | {"shard_size": 100} | several}))
    script.write_text(SELECT)
    ended = run_script(script, file, str(ranks), str(killed_after))
    assert ended.returncode == 0, ended.stdout


def text_pool(path: Path, records: int) -> Path:
    turns = ({"from": "human", "value": "what is {}+1?"}, {"from": "gpt", "value": "it is {}"})
    with path.open("w") as file:
        for n in range(records):
            said = [{**turn, "value": turn["value"].format(n)} for turn in turns]
            file.write(json.dumps({"id": str(n), "conversations": said}) + "\n")
    return path


def questions(server) -> collections.Counter:
    return collections.Counter(body["messages"][1]["content"] for body in server.bodies)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_run_asks_nothing_twice_but_what_was_under_way(settings, tmp_path, loopback, ranks: int):
    server = loopback(lambda body, n: Send(scored(1 + n % 5).body, delay_s=0.02))
    pool = text_pool(tmp_path / "pool.jsonl", 600)
    run_apart(settings, tmp_path, pool, server.url, ranks, killed_after=250)
    time.sleep(0.5)  # what was under way arrives
    assert 250 <= len(server.bodies) < 600
    # The other number of ranks goes on: it reads the replies of all.
    run_apart(settings, tmp_path, pool, server.url, ranks=1)
    asked = questions(server)
    assert len(asked) == 600
    assert sum(n - 1 for n in asked.values()) <= 8 * ranks
    assert max(asked.values()) <= 2
    audit(tmp_path / "runs" / "killed" / "scores", 600)
    assert read_score_table(tmp_path / "runs" / "killed" / "scores")["score"].null_count == 0


@pytest.mark.slow
def test_two_ranks_keep_a_file_each_and_ask_nothing_twice(settings, tmp_path, loopback):
    server = loopback(lambda body, n: scored(1 + n % 5))
    pool = text_pool(tmp_path / "pool.jsonl", 400)
    run_apart(settings, tmp_path, pool, server.url, ranks=2)
    folder = tmp_path / "runs" / "killed"
    lines = {p.name: len(p.read_text().splitlines()) for p in (folder / "selector").glob("replies-*.jsonl")}
    assert lines == {"replies-000.jsonl": 200, "replies-001.jsonl": 200}
    assert set(questions(server).values()) == {1}
    cost_log = [json.loads(line) for line in (folder / "cost_log.jsonl").read_text().splitlines()]
    assert [entry["calls"] for entry in cost_log if entry["stage"] == "score"] == [400]


@pytest.mark.parametrize(("status", "batches"), [(400, 4), (500, 1)])
def test_a_few_refused_records_at_the_start_do_not_end_a_run(judge, loopback, status: int, batches: int):
    """A cascade hands on the longest records first, one or two of them; a server that is down is down at once."""
    server = loopback(lambda body, n: Send({"error": "context length exceeded"}, status))
    selector = create("llm_judge", choice(server.url)["options"])
    selector._judge = judge(server.url, max_retries=0)
    pair = [Sample(f"s{k}", (Turn("user", "q"), Turn("assistant", "a", trained=True))) for k in range(2)]
    batch = SimpleNamespace(samples=pair, labels=torch.zeros(2, 1))
    for _ in range(batches - 1):
        assert [bad.reason for bad in selector.score(batch)["failure"]] == ["request_failed"] * 2
    with pytest.raises(SelectorError, match=f"no judgement on any of the first {2 * batches} records"):
        selector.score(batch)
