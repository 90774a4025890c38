"""Which objective picks the better training set when half the labels are wrong by a rule?

    python benchmarks/bench_setwise_digits.py --seeds 5 --out benchmarks/results/bench_setwise_digits.jsonl

Plain handwritten digits (scikit-learn's 1,797), cut anew for every seed: 120 pretrain both models, 100 anchors, 100 to
develop on, 380 to test on, the rest is the pool, where a fixed permutation without fixed points mislabels half. A small
perceptron (proxy) gives slopes and curvature probes; a larger one (target) is fine-tuned from its pretrained state on
each picked set, the same number of steps for every set. ``cold`` is the pretrained proxy, ``warm`` the proxy after one
epoch on 5% of the pool. Every ranking marked ``chosen`` takes its scale by the anchors' loss after a brief training of
the proxy on its set; ``--split dev`` is for developing, the test split for reporting. Nothing is chosen on either.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from _record import Recorder
from _setwise_digits import (
    BATCH,
    BRIEF_STEPS,
    CLASSES,
    PRETRAIN_STEPS,
    PROXY_WIDTH,
    STEPS,
    TARGET_WIDTH,
    Scored,
    accuracy,
    cut,
    fresh,
    losses,
    single,
    trained,
)
from scipy.stats import t as student

from ostlight.setwise import (
    Choice,
    Limits,
    Pick,
    Scale,
    SetObjective,
    choose_scale,
    gradient_clusters,
    pick_set,
    quota_limits,
)

PLAIN_SCALES = [Scale(e) for e in (0.25, 0.5, 1, 2, 4, 8)]
BATCH_SCALES = [Scale(eta, b) for eta in (0.15, 0.5, 1.5, 5.0) for b in (4, 32, 256)]
SINGLE_SCALES = [Scale(eta, 1) for eta in (0.015, 0.05, 0.15, 0.5, 1.5, 5.0)]

Picks = dict[str, np.ndarray]
Notes = dict[str, float]
Store = dict[tuple[str, str], list[float]]
UNITS = {
    "chosen_eta": "step",
    "chosen_B": "samples",
    "relative_gap": "ratio",
    "relative_greedy_gap": "ratio",
    "true_over_sketched": "ratio",
    "anchor_loss": "nats",
    "eta_by_rule": "step",
}


class Picker:
    """Every ranking at one budget, from one proxy."""

    def __init__(self, scored: Scored, size: int) -> None:
        self.scored, self.size, self.count = scored, size, len(scored.f)
        self.picks: Picks = {}
        self.notes: Notes = {}

    def anchor_losses(self, scored: Scored, sets: list[np.ndarray]) -> dict[bytes, float]:
        """Of brief trainings, side by side."""
        models, _ = trained(scored.proxy, scored.digits["pool"], sets, BRIEF_STEPS, BATCH, scored.seed)
        found = losses(models, *scored.digits["anchors"]).mean(-1).tolist()
        return {np.sort(rows).tobytes(): loss for rows, loss in zip(sets, found, strict=True)}

    def choose(
        self, name: str, scales: list[Scale], pick: Callable[[Scale], Pick], scored: Scored | None = None
    ) -> Choice:
        found = {scale: pick(scale) for scale in scales}
        known = self.anchor_losses(scored or self.scored, [one.rows for one in found.values()])
        choice = choose_scale(scales, lambda scale: found[scale], lambda rows: known[np.sort(rows).tobytes()])
        best = choice.best
        self.picks[name] = best.pick.rows
        self.notes[f"{name}|chosen_eta"] = best.scale.eta
        if math.isfinite(best.scale.batch_size):
            self.notes[f"{name}|chosen_B"] = best.scale.batch_size
        self.notes[f"{name}|relative_gap"] = best.pick.gap / max(abs(best.pick.bound), 1e-12)
        self.notes[f"{name}|relative_greedy_gap"] = best.pick.greedy_gap / max(abs(best.pick.bound), 1e-12)
        return choice

    def sets(self, name: str, phi: np.ndarray, limits: Limits, forms: str = "FJ") -> Choice:
        f, exact = self.scored.f, self.scored.phi(None)

        def plain(scale: Scale) -> Pick:
            return pick_set(SetObjective.plain(f, phi, displacement=scale.eta, size=limits.size), limits)

        def minibatch(scale: Scale) -> Pick:
            settings = {"eta": scale.eta, "batch_size": scale.batch_size, "size": limits.size}
            return pick_set(SetObjective.minibatch(f, phi, **settings), limits)

        for form in forms:
            label = {"F": "set plain", "J": "set minibatch"}[form] + f" {name} chosen"
            choice = self.choose(
                label, PLAIN_SCALES if form == "F" else BATCH_SCALES, plain if form == "F" else minibatch
            )
            rows = choice.best.pick.rows
            seen = float(np.square(phi[rows].mean(0)).sum())
            self.notes[f"{label}|true_over_sketched"] = float(np.square(exact[rows].mean(0)).sum()) / max(seen, 1e-12)
        return choice

    def all(self) -> None:
        scored, size = self.scored, self.size
        whole = Limits.count(size, self.count)
        by_label = quota_limits(scored.digits["pool"][1].numpy(), size)
        phi = {"K=16": scored.phi(16), "K=64": scored.phi(64)}
        clusters = gradient_clusters(scored.f, phi["K=64"], 2 * CLASSES, scored.seed)
        by_cluster = quota_limits(clusters, size)
        helps = Counter(clusters[scored.f > 0].astype(str).tolist())
        helpful = quota_limits(clusters, size, weights=helps)
        eta = scored.eta
        alone = {k: eta * scored.f - eta**2 / 2 * (p**2).sum(1) for k, p in phi.items()}
        exact = {scale: scored.exact(scale.eta) for scale in SINGLE_SCALES}
        self.picks |= {
            "first_order": whole.fill(scored.f),
            "exact": whole.fill(scored.exact(eta)),
            "low loss": whole.fill(-scored.loss),
            "second_order K=16": whole.fill(alone["K=16"]),
            "second_order K=64": whole.fill(alone["K=64"]),
            "exact by label": by_label.fill(scored.exact(eta)),
            "low loss by label": by_label.fill(-scored.loss),
            "second_order K=64 by label": by_label.fill(alone["K=64"]),
            "second_order K=64 by cluster": by_cluster.fill(alone["K=64"]),
        }

        def fixed(rows: np.ndarray) -> Pick:
            return Pick(rows, 0.0, 0.0, 0.0, 0.0, 0.0)

        self.choose("exact chosen", SINGLE_SCALES, lambda s: fixed(whole.fill(exact[s])))
        for name, limits in (("", whole), (" by label", by_label)):
            self.choose(
                f"second_order K=64{name} chosen",
                SINGLE_SCALES,
                lambda s, limits=limits: fixed(  # type: ignore[misc]
                    limits.fill(s.eta * scored.f - s.eta**2 / 2 * (phi["K=64"] ** 2).sum(1))
                ),
            )
        two = SetObjective.plain(scored.f, phi["K=64"], displacement=2.0, size=size)
        self.picks["set plain K=64 e=2"] = pick_set(two, whole).rows
        self.sets("K=16", phi["K=16"], whole)
        scale = self.sets("K=64", phi["K=64"], whole).best.scale
        self.sets("K=256", scored.phi(256), whole)
        self.sets("K=all", scored.phi(None), whole)
        self.sets("K=64 damped", scored.damped(phi["K=64"]), whole)
        self.sets("K=64 by label", phi["K=64"], by_label)
        self.sets("K=64 by cluster", phi["K=64"], by_cluster)
        self.sets("K=64 by helpful cluster", phi["K=64"], helpful, "J")
        self.picks["set minibatch K=64 refreshed"] = self.refreshed(scale)

    def refreshed(self, scale: Scale) -> np.ndarray:
        """Half the budget, a brief training of the proxy on it, new slopes and probes, then the other half."""
        first = self.picks["set minibatch K=64 chosen"][: self.size // 2]
        models, _ = trained(
            self.scored.proxy, self.scored.digits["pool"], [first], BRIEF_STEPS, BATCH, self.scored.seed
        )
        again = Scored(single(models), self.scored.digits, self.scored.eta, 0.0, self.scored.seed + 500)
        rest = np.setdiff1d(np.arange(self.count), first)
        size = self.size - len(first)
        settings = {"eta": scale.eta, "batch_size": scale.batch_size, "size": size}
        objective = SetObjective.minibatch(again.f[rest], again.phi(64)[rest], **settings)
        return np.concatenate([first, rest[pick_set(objective, Limits.count(size, len(rest))).rows]])


def one_seed(seed: int, split: str) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float], Notes]:
    """Accuracies and clean shares by (case, ranking), and notes."""
    digits, rng = cut(seed), np.random.default_rng(seed + 1_000)
    count, everything = len(digits.wrong), np.arange(len(digits["pretrain"][1]))
    target, cold = (
        single(trained(fresh(width, seed + k), digits["pretrain"], [everything], PRETRAIN_STEPS, 20, seed)[0])
        for k, width in enumerate((TARGET_WIDTH, PROXY_WIDTH))
    )
    few = rng.permutation(count)[: count // 20]
    warmed, norms = trained(cold, digits["pool"], [few], len(few) // 8, 8, seed)
    proxies = {"cold": cold, "warm": single(warmed)}
    notes = {f"proxy={k}|anchor_loss": float(losses(p, *digits["anchors"]).mean()) for k, p in proxies.items()}
    clean = np.flatnonzero(~digits.wrong)
    accuracies = {("", "base"): float(accuracy(target, *digits[split]))}
    shares: dict[tuple[str, str], float] = {}
    full, _ = trained(target, digits["pool"], [np.arange(count)], STEPS, BATCH, seed)
    accuracies["", "full"] = float(accuracy(full, *digits[split])[0])
    for fraction in (0.2, 0.5):
        size = round(fraction * count)
        size = min(size, len(clean))
        sets = {(f"budget={fraction:g}", "random"): rng.permutation(count)[:size]}
        sets[f"budget={fraction:g}", "oracle"] = rng.permutation(clean)[:size]
        for name, proxy in proxies.items():
            picker = Picker(Scored(proxy, digits, None, float(norms.median()), seed), size)
            picker.all()
            case = f"budget={fraction:g} proxy={name}"
            sets |= {(case, ranking): rows for ranking, rows in picker.picks.items()}
            notes |= {f"{case}|{k}": v for k, v in picker.notes.items()}
            notes[f"{case}|eta_by_rule"] = picker.scored.eta
        models, _ = trained(target, digits["pool"], list(sets.values()), STEPS, BATCH, seed)
        accuracies |= dict(zip(sets, accuracy(models, *digits[split]).tolist(), strict=True))
        shares |= {key: float(1 - digits.wrong[rows].mean()) for key, rows in sets.items()}
    return accuracies, shares, notes


def half_width(values: Sequence[float]) -> float:
    """Of the 95% interval of the mean (Student)."""
    n = len(values)
    return float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="append the figures to this file")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    record = Recorder("bench_setwise_digits", asked.out)
    accuracies, shares, notes = defaultdict(list), defaultdict(list), defaultdict(list)
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        for store, found in zip((accuracies, shares, notes), one_seed(seed, asked.split), strict=True):
            for key, value in found.items():
                store[key].append(value)  # type: ignore[index]
        print(f"seed {seed} done", flush=True)

    def add(key: tuple[str, str], metric: str, values: list[float], unit: str) -> None:
        low, high = np.percentile(values, [20, 80]).tolist()
        case = f"split={asked.split} {key[0]} ranking={key[1].replace(' ', '_')}".replace("  ", " ")
        spread = {"unit": unit, "n": len(values)}
        record.add(case=case, metric=f"{metric}_mean", value=float(np.mean(values)), p20=low, p80=high, **spread)
        record.add(case=case, metric=f"{metric}_ci95", value=half_width(values), **spread)

    for key, values in accuracies.items():
        add(key, "accuracy", values, "share")
    for key, values in shares.items():
        add(key, "clean", values, "share")
    for (case, ranking), values in accuracies.items():
        for other in ("exact", "low loss", "set plain K=64 chosen", "second_order K=64 by label"):
            if (case, other) in accuracies and other != ranking:
                paired = (np.array(values) - np.array(accuracies[case, other])).tolist()
                add((case, ranking), f"accuracy_above_{other.replace(' ', '_')}", paired, "share")
    for name, values in notes.items():
        case, _, metric = name.rpartition("|")
        case, _, ranking = case.partition("|")
        case = f"split={asked.split} {case}" + (f" ranking={ranking.replace(' ', '_')}" if ranking else "")
        low, middle, high = np.percentile(values, [20, 50, 80], method="lower").tolist()
        record.add(case=case, metric=metric, value=middle, p20=low, p80=high, unit=UNITS[metric], n=len(values))
    print(table(accuracies, shares))


def table(accuracies: Store, shares: Store) -> str:
    """Mean accuracy ± half its 95% interval, and the clean share in brackets, by ranking and case."""
    cases = [f"budget={b:g} proxy={p}" for p in ("cold", "warm") for b in (0.2, 0.5)]
    rankings = list(dict.fromkeys(ranking for _, ranking in accuracies))
    lines = ["| ranking | " + " | ".join(cases) + " |", "| --- |" + " --- |" * len(cases)]
    for ranking in rankings:
        cells = []
        for case in cases:
            key = next(k for k in ((case, ranking), (case.split()[0], ranking), ("", ranking)) if k in accuracies)
            clean = f" ({np.mean(shares[key]):.2f})" if key in shares else ""
            cells.append(f"{np.mean(accuracies[key]):.3f} ± {half_width(accuracies[key]):.3f}{clean}")
        lines.append(f"| {ranking} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
