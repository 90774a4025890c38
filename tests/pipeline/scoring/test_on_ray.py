"""Scoring on a Ray cluster of two nodes, one of which is killed in the middle: the table is that of one process."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ray_nodes import add_node, kill_second_node, two_nodes

import ostlight
from ostlight.errors import ClusterError, PendingError, SelectorError
from ostlight.pipeline import scoring_on_ray
from ostlight.pipeline.cost_log import CostLog
from ostlight.selection import registry

pytest.importorskip("ray", reason="needs pip install 'ostlight[ray]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture
def asked():
    """A selector that writes down every sample it is asked for, by node, and waits where it is told to."""
    from asked_selector import Asked

    registry.register("asked")(Asked)
    yield
    del registry._registered["asked"]


def parts(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "scores").iterdir())}


def questions(folder: Path) -> list[tuple[str, str]]:
    """Node and sample of each question, in order."""
    return [tuple(line.split()) for line in (folder / "asked.txt").read_text().splitlines()]


def wait_until(condition, timeout: float = 250) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)


def on_ray(base: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return base | {"compute": base["compute"] | {"engine": "ray"}} | sections


def test_a_node_is_killed_while_it_scores_and_another_joins(cluster, settings, tmp_path: Path, asked, logged):
    compute = settings()["compute"] | {"shard_size": 6}
    selector = {"name": "asked", "options": {"folder": str(tmp_path), "waits": True}}
    base = settings(compute=compute, selector=selector)
    (tmp_path / "alone").mkdir()
    ostlight.select(
        base | {"name": "whole", "selector": {"name": "asked", "options": {"folder": str(tmp_path / "alone")}}}
    )

    with ThreadPoolExecutor(1) as thread:
        ended = thread.submit(ostlight.select, on_ray(base, name="ray"))
        try:
            # Each process waits in the middle of its second shard.
            wait_until(lambda: (tmp_path / "waits-second").exists() and (tmp_path / "waits-first").exists())
            kill_second_node(cluster)
            add_node(cluster)
            wait_until(lambda: len(list(tmp_path.glob("set_up-*"))) >= 3)
        finally:
            (tmp_path / "go").touch()  # whatever failed: the thread is waited for
        ended.result()
    runs = tmp_path / "runs"
    assert parts(runs / "ray") == parts(runs / "whole")
    counts = Counter(sample for _, sample in questions(tmp_path))
    assert len(counts) == 48
    twice = {sample for sample, count in counts.items() if count > 1}
    lost = {sample for node, sample in questions(tmp_path) if node == "second"}
    assert 0 < len(twice) <= 6, "what the killed process was asked of its last shard, and nothing else"
    assert twice < lost
    assert "a process was lost" in logged()
    cost, _ = CostLog(runs / "ray" / "cost_log.jsonl").read()
    assert cost.stage == "score"
    assert cost.samples == 48
    assert cost.more["processes"] == 3
    assert cost.device_s > 0


def test_a_proxy_is_warmed_up_once_and_the_scores_are_those_of_one_process(cluster, settings, tmp_path: Path, logged):
    proxy = settings()["proxy"] | {"warmup": {"fraction": 0.2, "training": {"batch_size": 4}}}
    base = settings(
        proxy=proxy,
        selector={"name": "ost", "options": {"estimator": "first_order", "step": "sgd", "parameters": "last:1"}},
    )
    ostlight.select(base | {"name": "whole"})
    logged()
    ostlight.select(on_ray(base, name="ray"))
    said = logged()
    assert said.count("utilities over") == 1, "what the first process logs comes here; the others say the same"
    runs = tmp_path / "runs"
    assert parts(runs / "ray") == parts(runs / "whole")
    assert (runs / "ray" / "proxy" / "warmup.json").exists()
    stages = [cost.stage for cost in CostLog(runs / "ray" / "cost_log.jsonl").read()]
    assert stages == ["warm-up", "score", "select"]
    notes = [json.loads((runs / name / "selector" / "notes.json").read_text()) for name in ("ray", "whole")]
    assert notes[0] == notes[1]


def test_what_a_process_cannot_do_ends_the_run_in_its_own_words(cluster, settings, tmp_path: Path, asked, monkeypatch):
    broken = settings(selector={"name": "asked", "options": {"folder": str(tmp_path), "fails": True}})
    with pytest.raises(SelectorError, match="failed on every sample"):
        ostlight.select(on_ray(broken, name="fails"))
    monkeypatch.setattr(scoring_on_ray, "LOST_TIMES", 1)
    dying = settings(selector={"name": "asked", "options": {"folder": str(tmp_path), "dies": True}})
    with pytest.raises(ClusterError, match="lost"):
        ostlight.select(on_ray(dying, name="dies"))


def test_a_node_with_other_packages_is_refused(cluster, settings, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("ostlight.pipeline.fingerprint.package_versions", lambda: "others")
    with pytest.raises(ClusterError, match="package versions"):
        ostlight.select(on_ray(settings(selector={"name": "length"}), name="others"))


def test_a_judge_that_waits_for_replies_waits_on_a_cluster_too(cluster, settings):
    judge = {"name": "llm_judge", "options": {"backend": "batch", "model": "m"}}
    with pytest.raises(PendingError, match="48 requests wait for replies"):
        ostlight.select(on_ray(settings(selector=judge), name="waits"))
