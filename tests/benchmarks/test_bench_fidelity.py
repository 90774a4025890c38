"""The fidelity benchmark: its arithmetic by hand, its diagnostics against autograd, and the records it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import _fidelity
import bench_fidelity
import numpy as np
import pytest
import torch

from ostlight.influence.sample_gradient import dot, sample_gradient
from ostlight.models.influence_task import SampleTask

FIELDS = {
    "bench", "case", "metric", "value", "unit", "n", "p20", "p80", "commit", "device", "versions", "when"
}  # fmt: skip
MINI = bench_fidelity.Plan((0,), ("0.05",), 60, 8, (2, 4), (2,), 3, 24, 16, ("0.05",), ("0.05",), 4, 2)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def pretrained(folder: Path) -> tuple[_fidelity.LabelledPool, _fidelity.WarmedProxy]:
    pool = _fidelity.LabelledPool.of(0, 60, folder)
    pool = replace(pool, anchors=pool.anchors[:12])
    return pool, _fidelity.WarmedProxy.of(pool, "pretrained", folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fidelity")


def test_fewer_probes_are_the_leading_ones_of_many(home: Path) -> None:
    pool, proxy = pretrained(home)
    slopes, many, norms = _fidelity.sketched(proxy, pool.samples[:5], 8, seed=3)
    same_slopes, few, _ = _fidelity.sketched(proxy, pool.samples[:5], 4, seed=3)
    assert few.shape == (5, 4)
    np.testing.assert_allclose(bench_fidelity.leading(many, 4), few, rtol=1e-5)
    np.testing.assert_array_equal(slopes, same_slopes)
    assert (norms > 0).all()


def test_diagnostics_agree_with_autograd(home: Path) -> None:
    pool, proxy = pretrained(home)
    singles = proxy.singles(pool.samples[:4])
    found = _fidelity.StepResponses.of(proxy, singles)
    anchors = torch.cat([proxy.model.losses(b).detach() for b in proxy.anchors.batches]).double().mean()
    start = _fidelity.anchor_loss(found.logits, found.labels, found.weights)
    assert float(start) == pytest.approx(float(anchors), rel=1e-5)
    np.testing.assert_allclose(found.whitened().square().sum(1).numpy(), found.gauss_newton, rtol=1e-4)
    # The norms of the model round to float32, so a second difference cannot be much better than this.
    steep = int(found.gauss_newton.argmax())
    assert found.hessian[steep] == pytest.approx(curvature_along(proxy, singles[steep]), rel=3e-2)


def curvature_along(proxy: _fidelity.WarmedProxy, single: object) -> float:
    """``g' (d2 L_V) g`` by differentiating twice, in float64 and with attention that can be."""
    import copy

    model = copy.deepcopy(proxy.model).double()
    model.model.set_attn_implementation("eager")
    named = dict(model.model.named_parameters())
    parameters = {name: named[name] for name in proxy.parameters}
    _, gradient = sample_gradient(model.model, SampleTask(), parameters, single)
    loss = torch.cat([model.losses(b) for b in proxy.anchors.batches]).mean()
    slope = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    along = torch.stack([(a * b).sum() for a, b in zip(slope, gradient.values(), strict=True)]).sum()
    second = torch.autograd.grad(along, list(parameters.values()))
    return float(dot(dict(zip(parameters, second, strict=True)), gradient))


def test_for_short_steps_all_estimators_come_to_the_definition(home: Path) -> None:
    pool, proxy = pretrained(home)
    singles = proxy.singles(pool.samples[:6])
    responses = _fidelity.StepResponses.of(proxy, singles)
    slopes, _, norms = _fidelity.sketched(proxy, pool.samples[:6], 1, seed=0)
    eta = 3e-3 / float(norms.max())
    exact = _fidelity.definitions(proxy, singles, [eta])[0]
    scale = np.abs(exact).max()
    hessian = eta * slopes - eta**2 / 2 * responses.hessian
    gauss_newton = eta * slopes - eta**2 / 2 * responses.gauss_newton
    assert np.abs(hessian - exact).max() <= 1e-2 * scale
    assert np.abs(responses.linear_logits(eta) - gauss_newton).max() <= 1e-2 * scale


@pytest.mark.parametrize("every_label", [False, True])
def test_resampled_curvature_is_unbiased(home: Path, every_label: bool) -> None:
    pool, proxy = pretrained(home)
    responses = _fidelity.StepResponses.of(proxy, proxy.singles(pool.samples[:4]))
    found = responses.resampled(600, every_label, seed=1)
    # Four samples, standard error of each about sqrt(2 / 600).
    np.testing.assert_allclose(found, responses.gauss_newton, rtol=5 * (2 / 600) ** 0.5)


def test_projection_keeps_what_the_other_half_spans(home: Path) -> None:
    pool, proxy = pretrained(home)
    responses = _fidelity.StepResponses.of(proxy, proxy.singles([*pool.samples[:2], *pool.samples[:2]]))
    error = (responses.projected() - responses.changes).abs().amax((1, 2)) / responses.changes.abs().amax((1, 2))
    assert float(error.max()) <= 1e-2


def test_figures_by_hand() -> None:
    assert bench_fidelity.overlap(np.array([4.0, 3, 2, 1]), np.array([4.0, 1, 2, 3]), 0.5) == 0.5
    facts = {"norms": np.array([1.0, 1, 2, 2]), "defective": np.array([False, False, True, True])}
    found = bench_fidelity.agreement(np.array([4.0, 3, 2, 1]), np.array([3.0, 4, 2, 1]), facts)
    assert found["spearman_exact"] == pytest.approx(0.8)
    assert found["spearman_exact_short"] == pytest.approx(-1.0)
    assert (found["top50_overlap"], found["auroc_defect"]) == (1.0, 1.0)


def test_the_datamodelling_score_is_one_where_training_does_what_the_sum_says() -> None:
    rng = np.random.default_rng(0)
    facts = {"slopes": rng.normal(size=40), "phi": rng.normal(size=(40, 8))}
    facts["subsets"] = np.stack([rng.permutation(40)[:10] for _ in range(12)])
    own = 0.1 * facts["slopes"] - 0.005 * np.square(facts["phi"]).sum(1)
    facts["gains"] = np.array([own[rows].sum() for rows in facts["subsets"]])
    assert bench_fidelity.datamodelling(facts, 8, 0.1)["lds_sum"] == pytest.approx(1.0)
    assert bench_fidelity.datamodelling(facts, 0, 0.1)["lds_sum"] < 1.0


@pytest.mark.slow
def test_it_writes_its_records_and_takes_up_from_stored_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_fidelity, "QUICK", MINI)
    first, again = tmp_path / "first.jsonl", tmp_path / "again.jsonl"
    bench_fidelity.main(["--quick", "--out", str(first), "--facts", str(tmp_path)])
    assert "| spearman_exact, warm-up 0.05 | rule/3 | rule | 3rule |" in capsys.readouterr().out
    monkeypatch.setattr(bench_fidelity, "gather", lambda *_: pytest.fail("measured again"))
    bench_fidelity.main(["--quick", "--out", str(again), "--facts", str(tmp_path)])
    records, repeated = ([json.loads(line) for line in path.read_text().splitlines()] for path in (first, again))
    assert all(set(one) == FIELDS and one["bench"] == "bench_fidelity" and one["n"] == 1 for one in records)
    assert [(r["case"], r["metric"], r["value"]) for r in records] == [
        (r["case"], r["metric"], r["value"]) for r in repeated
    ]
    wanted = {"spearman_exact", "top20_overlap", "top50_overlap", "auroc_defect", "lds_sum", "lds_minibatch"}
    case = "estimator=second_order K=4 warmup=0.05 eta=rule"
    assert wanted <= {r["metric"] for r in records if r["case"] == case}
    exact = {r["metric"]: r["value"] for r in records if r["case"] == "estimator=exact warmup=0.05 eta=rule"}
    assert exact["spearman_exact"] == pytest.approx(1.0)
