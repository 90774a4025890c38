"""Out of memory: the token budget halves, stays halved, and the table is the one plenty of memory gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ostlight
from ostlight.errors import SelectorError
from ostlight.selection.registry import register
from ostlight.selection.scores import read_score_table
from ostlight.selection.selector import Selector

LIMIT = {"tokens": 0}
SEEN: list[tuple[int, bool]] = []


@register("tests-greedy")
class Greedy(Selector):
    """Runs out of memory on batches of more tokens than a limit."""

    uses_proxy = True

    def setup(self, context: Any) -> None:
        self.context = context
        if context.proxy.tokens_per_batch > LIMIT.get("setup", 10**9):
            raise torch.OutOfMemoryError("in setup")

    def score(self, batch: Any) -> dict[str, Any]:
        fits = batch.labels.numel() <= LIMIT["tokens"]
        SEEN.append((batch.labels.numel(), fits))
        if not fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return {"score": [float(len(s.answer)) for s in batch.samples]}


@register("tests-greedy-alone")
class GreedyAlone(Selector):
    """Needs no proxy and runs out of memory on more than three samples."""

    def score(self, batch: Any) -> dict[str, Any]:
        if len(batch) > 3:
            raise MemoryError
        return {"score": [float(s.position) for s in batch.samples]}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    LIMIT.clear()
    SEEN.clear()


def run(settings: Any, name: str, selector: str = "tests-greedy") -> Any:
    config = settings(name=name, selector={"name": selector})
    config["compute"] |= {"tokens_per_batch": 2_000, "shard_size": 12}
    return ostlight.select(config)


def table(selection: Any) -> list[dict[str, Any]]:
    return read_score_table(selection.folder.scores).select(["position", "state", "score", "reason"]).to_pylist()


def test_the_budget_halves_says_so_and_stays_halved(settings, logged):
    LIMIT["tokens"] = 10**9
    whole = table(run(settings, "plenty"))
    SEEN.clear()
    LIMIT["tokens"] = 300
    tight = table(run(settings, "tight"))
    assert tight == whole
    failed = [k for k, (_, fits) in enumerate(SEEN) if not fits]
    messages = [line for line in logged().splitlines() if "out of memory on a batch of" in line]
    # The preflight meets it once in silence (twice: counted and timed); after that each failure halves the budget.
    assert len(messages) == len([k for k in failed if k > 1]) >= 1
    assert len(failed) <= 5, "it is not found out again for each of four shards"
    assert max(failed) < len(SEEN) // 2
    assert "tokens, half of that" in messages[0]


def test_a_setup_that_runs_out_is_tried_with_half(settings, logged):
    LIMIT.update(tokens=10**9, setup=600)
    assert len(table(run(settings, "setup"))) == 48
    out = logged()
    assert "out of memory while setting up: from here on a batch has at most 1,000 tokens" in out
    assert "at most 500 tokens" in out
    LIMIT["setup"] = 3
    with pytest.raises(
        SelectorError, match="out of memory while setting up, also with 124 tokens in a batch: in setup"
    ):
        run(settings, "never")


def test_a_sample_too_large_alone_is_set_aside_and_the_run_goes_on(settings, proxy, samples):
    encoder = proxy("float32").encoder
    lengths = {s.position: len(encoder.encode(s)) for s in samples("pool")}
    LIMIT["tokens"] = max(lengths.values()) - 1
    rows = table(run(settings, "long"))
    too_long = [p for p, n in lengths.items() if n > LIMIT["tokens"]]
    assert [r["position"] for r in rows if r["reason"] == "out_of_memory"] == too_long
    assert all((r["score"] is None) == (r["position"] in too_long) for r in rows)


def test_where_nothing_fits_the_run_stops(settings):
    LIMIT["tokens"] = 1
    with pytest.raises(SelectorError, match="out of memory on each of 8 samples alone"):
        run(settings, "nothing")


def test_selectors_without_a_proxy_are_given_fewer_samples(settings, logged):
    rows = table(run(settings, "alone", "tests-greedy-alone"))
    assert [r["score"] for r in rows] == list(range(48))
    assert [line for line in logged().splitlines() if "out of memory" in line] == [
        "out of memory on a batch of 12 samples: from here on a batch has at most 6 samples, half of that",
        "out of memory on a batch of 6 samples: from here on a batch has at most 3 samples, half of that",
    ]
