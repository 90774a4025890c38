"""How faithfully do the cheap estimators rank what `exact` ranks, and what do the ranks say about training?

    python benchmarks/bench_fidelity.py --out /tmp/bench_fidelity.jsonl [--quick]

On DigitMath, for first and second order over eta, K, the proxy's checkpoint and seeds: rank correlation and overlap
with `exact`, AUROC on the planted defects, and the linear datamodelling score. Inner products do not depend on eta, so
each proxy is sketched once with the most probes; fewer probes are the leading ones, every eta is arithmetic.

Four estimators that cost a pass over the anchors for each sample say where the rest is lost: `gauss_newton` has no
sampling, `hessian` the whole second derivative, `linear_logits` the network linear but the cross-entropy whole,
`linear_logits_half` the same as far as N/2 fixed probes can tell.

What was found for a proxy is kept in `--facts`, and a rerun with the same folder takes up from there.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _fidelity import (
    BATCH_SIZE,
    WARM_UPS,
    LabelledPool,
    StepResponses,
    WarmedProxy,
    definitions,
    projected,
    sketched,
    trained_gain,
)
from _record import Recorder
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from ostlight.influence.gradients.responses import SNAPSHOTS
from ostlight.influence.step_size import median_step_size
from ostlight.models.batch import Batch
from ostlight.models.influence_task import SampleTask
from ostlight.selection.set_objective.objective import minibatch_value
from ostlight.training.optimizer_records import warmup_adam_preconditioner
from ostlight_selectors.ost import STEP_SIZE_SAMPLES

ETAS = {"rule/3": 1 / 3, "rule": 1.0, "3rule": 3.0}
RULE = list(ETAS).index("rule")
PROBES = (4, 16, 64, 256)
DIRECTIONS = (32,)
NOT_DEFECTIVE = ("clean", "near_duplicate")
"""A near-duplicate is right, only redundant: no utility of one sample can tell."""

Facts = dict[str, np.ndarray]


@dataclass(frozen=True)
class Plan:
    """Sizes. ``lds`` and ``adam`` name the warm-ups that these costly parts are done for."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    warm_ups: tuple[str, ...] = tuple(WARM_UPS)
    pool: int = 2500
    scored: int = 100
    probes: tuple[int, ...] = PROBES
    directions: tuple[int, ...] = DIRECTIONS
    subsets: int = 30
    subset_of: int = 600
    subset_size: int = 100
    lds: tuple[str, ...] = ("0.05", "two_passes")
    adam: tuple[str, ...] = ("0.05", "two_passes")
    adam_probes: int = 64
    adam_directions: int = 32
    explained: bool = True


QUICK = Plan((0,), ("0.05",), 300, 16, (4, 16), (4,), 4, 60, 32, ("0.05",), ("0.05",), 16, 4)


def gather(pool: LabelledPool, name: str, plan: Plan, folder: Path) -> Facts:
    """Everything that is measured on one pool with one proxy."""
    proxy = WarmedProxy.of(pool, name, folder)
    drawn = np.random.default_rng(1000 + pool.seed).permutation(len(pool.samples))[: plan.subset_of]
    samples = [pool.samples[k] for k in drawn]
    scored = samples[: plan.scored]
    singles = proxy.singles(scored)
    slopes, phi, norms = sketched(proxy, samples, max(plan.probes), pool.seed)
    of_eta = proxy.singles(samples[:STEP_SIZE_SAMPLES])
    eta = median_step_size(proxy.model.model, proxy.parameters, of_eta, proxy.update_norm, task=SampleTask())
    etas = [eta * factor for factor in ETAS.values()]
    facts: Facts = {"eta": np.array(eta), "dev_loss": np.array(proxy.dev_loss), "slopes": slopes, "phi": phi}
    facts |= {"norms": norms[: plan.scored], "exact": definitions(proxy, singles, etas)}
    facts["defective"] = np.array([pool.defects[k] not in NOT_DEFECTIVE for k in drawn[: plan.scored]])
    others = samples[plan.scored :]
    for k in plan.directions:
        facts[f"projected{k}"] = projected(proxy, scored, others[: SNAPSHOTS * k], k, etas)
    if name in plan.adam:
        preconditioner, _ = warmup_adam_preconditioner(proxy.folder, proxy.model.model, proxy.parameters, proxy.anchors)
        adam_eta = median_step_size(
            proxy.model.model,
            proxy.parameters,
            of_eta,
            proxy.update_norm,
            task=SampleTask(),
            preconditioner=preconditioner,
        )
        adam_etas, k = [adam_eta * factor for factor in ETAS.values()], plan.adam_directions
        facts["adam_eta"] = np.array(adam_eta)
        facts["adam_slopes"], facts["adam_phi"], _ = sketched(
            proxy, scored, plan.adam_probes, pool.seed, preconditioner
        )
        facts["adam_exact"] = definitions(proxy, singles, adam_etas, preconditioner)
        facts["adam_projected"] = projected(proxy, scored, others[: SNAPSHOTS * k], k, adam_etas, preconditioner)
    if name in plan.lds:
        rng = np.random.default_rng(2000 + pool.seed)
        rows = np.stack([rng.permutation(plan.subset_of)[: plan.subset_size] for _ in range(plan.subsets)])
        facts["subsets"] = rows
        facts["gains"] = np.array([trained_gain(proxy, pool, np.sort(drawn[r]), pool.seed, 1) for r in rows])
        k, at_rule = plan.directions[0], etas[RULE : RULE + 1]
        facts["projected_all"] = projected(proxy, samples, others[: SNAPSHOTS * k], k, at_rule)[0]
    return facts | (explanations(pool, plan, proxy, singles, etas) if plan.explained else {})


def explanations(pool: LabelledPool, plan: Plan, proxy: WarmedProxy, singles: list[Batch], etas: list[float]) -> Facts:
    """Where the rest is lost: the costly part."""
    facts: Facts = {}
    responses = StepResponses.of(proxy, singles)
    near = responses.projected()
    facts |= {"gauss_newton": responses.gauss_newton, "hessian": responses.hessian}
    facts["linear_logits"] = np.stack([responses.linear_logits(e) for e in etas])
    facts["linear_logits_half"] = np.stack([responses.linear_logits(e, near) for e in etas])
    for k in plan.probes[:3]:
        for how, every in (("sampled", False), ("random_signs", True)):
            facts[f"{how}{k}"] = responses.resampled(k, every, pool.seed)
    return facts


def leading(phi: np.ndarray, probes: int) -> np.ndarray:
    """The sketch K probes would have given, from more: ``phi`` carries ``1 / sqrt(K)``."""
    return phi[:, :probes] * (phi.shape[1] / probes) ** 0.5


def utilities(facts: Facts, plan: Plan, place: int) -> dict[str, np.ndarray]:
    """``[N]`` by estimator, at one eta."""
    eta, n = float(facts["eta"]) * list(ETAS.values())[place], len(facts["norms"])
    slopes, phi = facts["slopes"][:n], facts["phi"][:n]

    def second(curvature: np.ndarray) -> np.ndarray:
        return eta * slopes - eta**2 / 2 * curvature

    found = {"estimator=exact": facts["exact"][place], "estimator=first_order": eta * slopes}
    for k in plan.probes:
        found[f"estimator=second_order K={k}"] = second(np.square(leading(phi, k)).sum(1))
    found |= {f"estimator=projected rank={k}": facts[f"projected{k}"][place] for k in plan.directions}
    if "hessian" in facts:
        found |= {f"estimator={name}": second(facts[name]) for name in ("gauss_newton", "hessian")}
        found |= {f"estimator={name}": facts[name][place] for name in ("linear_logits", "linear_logits_half")}
    return found


def overlap(a: np.ndarray, b: np.ndarray, share: float) -> float:
    """Share of the top of one that is in the top of the other."""
    count = max(1, round(share * len(a)))
    return len(set(np.argsort(-a)[:count]) & set(np.argsort(-b)[:count])) / count


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearmanr(a, b).statistic)


def agreement(found: np.ndarray, exact: np.ndarray, facts: Facts) -> dict[str, float]:
    """All figures of one estimator against `exact`; ``short`` looks at the half with the shorter steps."""
    short = facts["norms"] <= np.median(facts["norms"])
    return {
        "spearman_exact": rank_correlation(found, exact),
        "spearman_exact_short": rank_correlation(found[short], exact[short]),
        "top20_overlap": overlap(found, exact, 0.2),
        "top50_overlap": overlap(found, exact, 0.5),
        "auroc_defect": float(roc_auc_score(facts["defective"], -found)),
    }


def datamodelling(facts: Facts, probes: int, eta: float) -> dict[str, float]:
    """Rank correlation, over the subsets, of what is predicted with what training on them did. K = 0: first order.

    ``lds_plain`` is F(S), one step along all of the subset, as long as all the steps of the pass together.
    """
    slopes, phi = facts["slopes"], leading(facts["phi"], probes) if probes else facts["phi"][:, :0]
    own = eta * slopes - eta**2 / 2 * np.square(phi).sum(1)
    sums = np.array([own[rows].sum() for rows in facts["subsets"]])
    batches = np.array([minibatch_value(slopes, phi, rows, eta, BATCH_SIZE) for rows in facts["subsets"]])
    lengths = [eta / BATCH_SIZE * len(rows) for rows in facts["subsets"]]
    plain = np.array(
        [
            length * minibatch_value(slopes, phi, rows, length, math.inf)
            for length, rows in zip(lengths, facts["subsets"], strict=True)
        ]
    )
    predicted = {"lds_sum": sums, "lds_minibatch": batches, "lds_plain": plain}
    return {metric: rank_correlation(values, facts["gains"]) for metric, values in predicted.items()}


def figures(facts: Facts, name: str, plan: Plan) -> dict[tuple[str, str], float]:
    """``{(case, metric): value}`` of one pool with one proxy."""
    found: dict[tuple[str, str], float] = {}

    def add(case: str, values: Mapping[str, float]) -> None:
        found.update({(case, metric): value for metric, value in values.items()})

    add(f"warmup={name}", {"dev_loss": float(facts["dev_loss"]), "eta": float(facts["eta"])})
    n = len(facts["norms"])
    for place, (label, factor) in enumerate(ETAS.items()):
        eta = float(facts["eta"]) * factor
        for estimator, values in utilities(facts, plan, place).items():
            add(f"{estimator} warmup={name} eta={label}", agreement(values, facts["exact"][place], facts))
        terms = {"slope": eta * facts["slopes"][:n], "exact": facts["exact"][place]}
        terms |= {part: eta**2 / 2 * facts[part] for part in ("gauss_newton", "hessian") if part in facts}
        add(f"warmup={name} eta={label}", {f"median_{part}": float(np.median(v)) for part, v in terms.items()})
        if "gains" in facts:
            for k in (0, *plan.probes):
                estimator = f"second_order K={k}" if k else "first_order"
                add(f"estimator={estimator} warmup={name} eta={label}", datamodelling(facts, k, eta))
            if place == RULE:
                sums = np.array([facts["projected_all"][rows].sum() for rows in facts["subsets"]])
                predicted = {"lds_sum": rank_correlation(sums, facts["gains"])}
                add(f"estimator=projected rank={plan.directions[0]} warmup={name} eta={label}", predicted)
        if "adam_eta" in facts:
            eta = float(facts["adam_eta"]) * factor
            first = eta * facts["adam_slopes"]
            second = first - eta**2 / 2 * np.square(facts["adam_phi"]).sum(1)
            shaped = {"first_order": first, f"second_order K={plan.adam_probes}": second}
            shaped[f"projected rank={plan.adam_directions}"] = facts["adam_projected"][place]
            for estimator, values in shaped.items():
                figures_of = agreement(values, facts["adam_exact"][place], facts)
                add(f"estimator={estimator} optimizer=adam warmup={name} eta={label}", figures_of)
    slope, eta = facts["slopes"][:n], float(facts["eta"])
    for k in plan.probes[:3] if "hessian" in facts else ():
        for how in ("sampled", "random_signs"):
            error = np.median(np.abs(facts[f"{how}{k}"] / np.maximum(facts["gauss_newton"], 1e-30) - 1))
            rank = rank_correlation(eta * slope - eta**2 / 2 * facts[f"{how}{k}"], facts["exact"][RULE])
            add(f"labels={how} K={k} warmup={name}", {"curvature_error": float(error), "spearman_exact": rank})
    return found


UNITS = {"dev_loss": "nats", "eta": "1", "curvature_error": "ratio"}


def record(recorder: Recorder, every: Sequence[dict[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    """Writes each figure as the median over seeds; returns the medians."""
    medians = {}
    for case, metric in every[0]:
        values = [one[case, metric] for one in every]
        low, middle, high = (float(np.nanpercentile(values, q)) for q in (20, 50, 80))
        medians[case, metric] = middle
        unit = UNITS.get(metric, "nats" if metric.startswith("median_") else "share" if "top" in metric else "rank")
        recorder.add(case=case, metric=metric, value=middle, unit=unit, n=len(values), p20=low, p80=high)
    return medians


def table(medians: Mapping[tuple[str, str], float], metric: str, name: str) -> list[str]:
    """Estimators by eta for one warm-up, as Markdown."""
    ending = f" warmup={name} eta=rule"
    rows = [case.removesuffix(ending) for case, found in medians if found == metric and case.endswith(ending)]
    lines = [f"| {metric}, warm-up {name} | {' | '.join(ETAS)} |", "| --- |" + " --- |" * len(ETAS)]
    for row in rows:
        known = [medians.get((f"{row} warmup={name} eta={label}", metric)) for label in ETAS]
        columns = ["" if value is None else f"{value:.2f}" for value in known]
        lines.append(f"| {row.removeprefix('estimator=')} | {' | '.join(columns)} |")
    return [*lines, ""] if rows else []


def cached(place: Path, make: Callable[[], Facts]) -> Facts:
    if not place.exists():
        facts = make()
        with (part := place.with_suffix(".part")).open("wb") as file:
            np.savez(file, **facts)  # type: ignore[arg-type]
        part.rename(place)
    with np.load(place) as stored:
        return {name: stored[name] for name in stored.files}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="JSONL to append to; without it figures are printed")
    parser.add_argument("--quick", action="store_true", help="one small pool, one proxy: does it run?")
    parser.add_argument("--seeds", type=int, nargs="+", default=None)
    parser.add_argument("--warm-ups", nargs="+", choices=tuple(WARM_UPS), default=None)
    parser.add_argument("--brief", action="store_true", help="leaves out what explains the losses")
    parser.add_argument("--facts", type=Path, default=None, help="folder that keeps what each proxy gave")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    plan = replace(QUICK if options.quick else Plan(), explained=not options.brief)
    recorder = Recorder("bench_fidelity", options.out)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.facts or Path(scratch)) / ("quick" if options.quick else "full")
        folder = folder / "brief" if options.brief else folder
        names = options.warm_ups or plan.warm_ups
        found: dict[str, list[dict[tuple[str, str], float]]] = {name: [] for name in names}
        for seed in options.seeds or plan.seeds:
            pool = LabelledPool.of(seed, plan.pool, folder)
            for name in names:
                place = folder / f"facts-{seed}-{name}.npz"
                facts = cached(place, partial(gather, pool, name, plan, folder))
                found[name].append(figures(facts, name, plan))
                print(f"seed {seed}, warm-up {name}: done", flush=True)
    for name, every in found.items():
        medians = record(recorder, every)
        for metric in ("spearman_exact", "top20_overlap", "auroc_defect", "lds_sum", "lds_minibatch", "lds_plain"):
            print("\n".join(table(medians, metric, name)))


if __name__ == "__main__":
    main()
