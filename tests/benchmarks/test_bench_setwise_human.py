"""The set-wise benchmark on people's labels, on pictures made here: its gradients against autograd, and its records."""

from __future__ import annotations

import io
import json
from pathlib import Path

import bench_setwise_human
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from _setwise_human import load
from _setwise_perceptrons import Scored, fresh, gradients, label_errors, losses
from PIL import Image


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten colours, noisy pictures of each; two of five pool labels are wrong."""
    folder, rng = tmp_path_factory.mktemp("human"), np.random.default_rng(0)
    colours = rng.integers(40, 216, size=(10, 3))
    truth = ["id,pool_label,true_label,wrong"]
    for part, count in (("pool", 400), ("anchors", 20), ("dev", 20), ("test", 20)):
        rows = []
        for i in range(count):
            noise = rng.integers(-40, 40, size=(32, 32, 3))
            buffer, name = io.BytesIO(), f"{part}-{i}"
            Image.fromarray((colours[i % 10] + noise).astype(np.uint8)).save(buffer, "PNG")
            wrong = part == "pool" and i % 5 < 2
            label = f"colour{(i + 3 * wrong) % 10}"
            turns = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": label}]
            rows.append({"id": name, "image": {"bytes": buffer.getvalue(), "path": None}, "conversations": turns})
            truth += [f"{name},{label},colour{i % 10},{int(wrong)}"] if part == "pool" else []
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")
    (folder / "truth.csv").write_text("\n".join(truth) + "\n")
    return folder


@pytest.mark.slow
def test_scores_are_those_of_gradients_formed_in_full(data: Path, tmp_path: Path) -> None:
    cut = load(data, tmp_path)
    cut.parts.update({k: (x.double(), y) for k, (x, y) in cut.parts.items()})
    proxy = fresh(cut["pool"][0].shape[1], 8, 0)
    scored = Scored(proxy, cut, 0.3, 0.0, 0)
    formed = gradients(proxy, cut["pool"][0], label_errors(proxy, *cut["pool"]))
    leaves = [p.clone().requires_grad_() for p in proxy]
    slope = torch.autograd.grad(losses(leaves, *cut["anchors"]).mean(), leaves)
    torch.testing.assert_close(torch.tensor(scored.f), formed @ torch.cat([g.flatten() for g in slope]))
    moved = [p - 0.3 * g.view_as(p) for p, g in zip(proxy, formed[7].split([p.numel() for p in proxy]), strict=True)]
    gain = losses(proxy, *cut["anchors"]).mean() - losses(moved, *cut["anchors"]).mean()
    assert scored.exact(0.3)[7] == pytest.approx(float(gain), rel=1e-9)
    every = (scored.phi(None) ** 2).sum(1)
    assert np.median((scored.phi(2_000) ** 2).sum(1) / every) == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_it_writes_every_ranking(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_setwise_human, "STEPS", 5)
    monkeypatch.setattr(bench_setwise_human.HumanPicker, "brief_steps", 5)
    out = tmp_path / "results.jsonl"
    asked = ["bench", "--data", str(data), "--cache", str(tmp_path), "--seeds", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", asked)
    bench_setwise_human.main()
    records = [json.loads(line) for line in out.read_text().splitlines()]
    found = {(r["case"], r["metric"]): r["value"] for r in records}
    assert found["split=test budget=0.2 ranking=oracle", "clean_mean"] == 1.0
    case = "split=test budget=0.5 ranking=set_minibatch_K=64_by_label_chosen"
    assert found[case, "accuracy_above_exact_mean"] == pytest.approx(
        found[case, "accuracy_mean"] - found["split=test budget=0.5 ranking=exact", "accuracy_mean"]
    )
    assert found["split=test ranking=low_loss", "wrong_auroc"] > 0.5


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"pool\.parquet is missing.*--data"):
        load(tmp_path / "none", tmp_path)


def test_the_folder_must_be_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bench"])
    with pytest.raises(SystemExit):
        bench_setwise_human.main()
    assert "--data" in capsys.readouterr().err
