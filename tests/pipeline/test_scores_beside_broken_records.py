"""A record that cannot be used, and the order of the pool, change no other sample's score."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostlight
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.digitmath.model import checkpoint
from ostlight.selection.scores import OK, read_score_table

pytestmark = pytest.mark.usefixtures("few_samples_compared")

PROXY = {"warmup": {"fraction": 0.5, "training": {"lr": 1e-3, "batch_size": 4}}, "path": str(checkpoint("proxy"))}
BROKEN: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]},
    {
        "messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "y"}],
        "images": ["gone.png"],
    },
    {
        "messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "y"}],
        "images": ["cut.png"],
    },
    {
        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<image>"}],
        "images": ["cut.png"],
    },
]


@pytest.fixture
def pools(samples: Callable[[str], list[Sample]], tmp_path: Path) -> dict[str, Path]:
    """The same usable records: alone, in another order, and among others that cannot be used."""
    good = []
    for sample in samples("pool")[:24]:
        (tmp_path / f"{sample.id}.png").write_bytes(sample.images[0].read_bytes())
        messages = [{"role": turn.role, "content": turn.text} for turn in sample.turns]
        good.append({"id": sample.id, "messages": messages, "images": [f"{sample.id}.png"]})
    mixed = good + [{**BROKEN[k % len(BROKEN)], "id": f"broken{k}"} for k in range(16)]
    random.Random(0).shuffle(mixed)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    paths = {}
    for name, records in {"clean": good, "backwards": good[::-1], "mixed": mixed}.items():
        paths[name] = tmp_path / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(record) + "\n" for record in records))
    return paths


@pytest.mark.parametrize(
    "selector",
    [
        {"name": "loss"},
        {"name": "ost", "options": {"estimator": "first_order"}},
        pytest.param({"name": "ost", "options": {"estimator": "projected", "rank": 2}}, marks=pytest.mark.slow),
    ],
    ids=["loss", "first_order", "projected"],
)
def test_scores_are_those_of_the_clean_pool(
    selector: dict, pools: dict[str, Path], settings: Callable[..., dict]
) -> None:
    scores: dict[str, dict[str, float]] = {}
    for name, path in pools.items():
        given = settings(name=name, pool={"path": str(path)}, proxy=PROXY, selector=selector, budget={"count": 8})
        selection = ostlight.select(given)
        table = read_score_table(selection.folder.scores)
        rows = [row for row in table.select(["id", "state", "score"]).to_pylist() if row["state"] == OK]
        scores[name] = {row["id"]: row["score"] for row in rows}
        assert sum(selection.rejected.values()) == (16 if name == "mixed" else 0)
    clean = scores["clean"]
    assert len(clean) == 24
    for name in ("backwards", "mixed"):
        assert scores[name].keys() == clean.keys()
        found, expected = (np.array([each[id] for id in clean]) for each in (scores[name], clean))
        # Samples stand in other batches, which changes the last digits.
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_each_record_is_drawn_by_its_own_name(pools: dict[str, Path]) -> None:
    def drawn(name: str, share: float, seed: int) -> list[str]:
        pool = Pool.open(pools[name])
        ids = [json.loads(line)["id"] for line in pools[name].read_text().splitlines()]
        return [ids[k] for k in pool.random_share(share, seed) if not ids[k].startswith("broken")]

    for seed in range(4):
        assert drawn("clean", 0.5, seed) == drawn("backwards", 0.5, seed) == drawn("mixed", 0.5, seed)
        assert len(drawn("clean", 1.0, seed)) == 24
        assert set(drawn("clean", 0.2, seed)) <= set(drawn("clean", 0.7, seed))
    assert drawn("clean", 0.5, 0) != drawn("clean", 0.5, 1)
    counts = [len(Pool.open(pools["clean"]).random_share(0.25, seed)) for seed in range(200)]
    assert np.mean(counts) == pytest.approx(6, abs=0.6)


def test_a_share_that_draws_nobody_takes_the_next_usable_record(
    pools: dict[str, Path], settings: Callable[..., dict]
) -> None:
    proxy = PROXY | {"warmup": PROXY["warmup"] | {"fraction": 1e-6}}
    losses = []
    for name in ("clean", "mixed"):
        given = settings(name=name, pool={"path": str(pools[name])}, proxy=proxy, selector={"name": "loss"})
        folder = ostlight.select(given).folder
        warmup = json.loads((folder.proxy / "warmup.json").read_text())
        assert warmup["samples"] == 1
        losses.append(warmup["losses"])
    assert losses[0] == losses[1]
