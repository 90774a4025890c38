"""Which objective selects the better training set when half the labels are wrong by a rule?

    python benchmarks/bench_set_objective.py --seeds 5 --out /tmp/bench_set_objective.jsonl

Plain handwritten digits (scikit-learn's 1,797), cut again for every seed: 120 pretrain both models, 100 anchors, 100 to
develop on, 380 to test on, the rest is the pool, where a fixed permutation without fixed points mislabels half. A small
perceptron (proxy) gives alignments and sketches; a larger one (target) is fine-tuned from its pretrained state on each
set, the same number of steps for every set. ``cold`` is the pretrained proxy, ``warm`` the proxy after one
epoch on 5% of the pool. Every ranking marked ``tuned`` takes its scale by the anchors' loss after a brief training of
the proxy on its set; ``--split dev`` is for developing, the test split for reporting. Nothing is tuned on either.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from _perceptrons import (
    BATCH,
    CLASSES,
    PROXY_WIDTH,
    STEPS,
    TARGET_WIDTH,
    Cut,
    Scored,
    accuracy,
    fresh,
    losses,
    single,
    trained,
)
from _record import Recorder
from _set_rankings import SINGLE_SCALES, Notes, Rankings, fixed, table, written
from sklearn.datasets import load_digits

from ostlight.selection.set_objective import (
    Constraints,
    SetObjective,
    gradient_clusters,
    solve_set,
    stratified_constraints,
)

PRETRAIN_STEPS = 18


def cut(seed: int) -> Cut:
    """The digits in five parts, half of the pool mislabelled by one rule."""
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    rows = np.split(rng.permutation(len(labels)), [120, 220, 320, 700])
    wrong = np.zeros(len(rows[4]), dtype=bool)
    wrong[rng.permutation(len(wrong))[: len(wrong) // 2]] = True
    rule = rng.permutation(CLASSES)
    while (rule == np.arange(CLASSES)).any():
        rule = rng.permutation(CLASSES)
    labels = labels.copy()
    labels[rows[4][wrong]] = rule[labels[rows[4][wrong]]]
    names = ("pretrain", "anchors", "dev", "test", "pool")
    parts = {n: (torch.tensor(images[r] / 16 - 0.3), torch.tensor(labels[r])) for n, r in zip(names, rows, strict=True)}
    return Cut(parts, wrong)


class DigitsRankings(Rankings):
    """Every ranking at one budget, from one proxy."""

    def all(self) -> None:
        scored, size = self.scored, self.size
        whole = Constraints.count(size, self.count)
        by_label = stratified_constraints(scored.digits["pool"][1].numpy(), size)
        phi = {"K=16": scored.phi(16), "K=64": scored.phi(64)}
        clusters = gradient_clusters(scored.f, phi["K=64"], 2 * CLASSES, scored.seed)
        by_cluster = stratified_constraints(clusters, size)
        eta = scored.eta
        alone = {k: eta * scored.f - eta**2 / 2 * (p**2).sum(1) for k, p in phi.items()}
        exact = {scale: scored.exact(scale.eta) for scale in SINGLE_SCALES}
        self.selections |= {
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

        self.choose("exact tuned", SINGLE_SCALES, lambda s: fixed(whole.fill(exact[s])))
        for name, constraints in (("", whole), (" by label", by_label)):
            self.choose(
                f"second_order K=64{name} tuned",
                SINGLE_SCALES,
                lambda s, constraints=constraints: fixed(  # type: ignore[misc]
                    constraints.fill(s.eta * scored.f - s.eta**2 / 2 * (phi["K=64"] ** 2).sum(1))
                ),
            )
        two = SetObjective.minibatch(scored.f, phi["K=64"], eta=2.0, batch_size=math.inf, size=size)
        self.selections["set plain K=64 e=2"] = solve_set(two, whole).rows
        self.sets("K=16", phi["K=16"], whole)
        self.sets("K=64", phi["K=64"], whole)
        self.sets("K=256", scored.phi(256), whole)
        self.sets("K=all", scored.phi(None), whole)
        self.sets("K=64 by label", phi["K=64"], by_label)
        self.sets("K=64 by cluster", phi["K=64"], by_cluster)


def one_seed(seed: int, split: str) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float], Notes]:
    """Accuracies and clean shares by (case, ranking), and notes."""
    digits, rng = cut(seed), np.random.default_rng(seed + 1_000)
    count, everything = len(digits.wrong), np.arange(len(digits["pretrain"][1]))
    target, cold = (
        single(trained(fresh(64, width, seed + k), digits["pretrain"], [everything], PRETRAIN_STEPS, 20, seed)[0])
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
            rankings = DigitsRankings(Scored(proxy, digits, None, float(norms.median()), seed), size)
            rankings.all()
            case = f"budget={fraction:g} proxy={name}"
            sets |= {(case, ranking): rows for ranking, rows in rankings.selections.items()}
            notes |= {f"{case}|{k}": v for k, v in rankings.notes.items()}
            notes[f"{case}|step_size_by_rule"] = rankings.scored.eta
        models, _ = trained(target, digits["pool"], list(sets.values()), STEPS, BATCH, seed)
        accuracies |= dict(zip(sets, accuracy(models, *digits[split]).tolist(), strict=True))
        shares |= {key: float(1 - digits.wrong[rows].mean()) for key, rows in sets.items()}
    return accuracies, shares, notes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = Recorder("bench_set_objective", options.out)
    accuracies, shares, notes = defaultdict(list), defaultdict(list), defaultdict(list)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for store, found in zip((accuracies, shares, notes), one_seed(seed, options.split), strict=True):
            for key, value in found.items():
                store[key].append(value)  # type: ignore[index]
        print(f"seed {seed} done", flush=True)

    others = ("exact", "low loss", "set plain K=64 tuned", "second_order K=64 by label")
    written(record, options.split, accuracies, shares, notes, others)
    cases = [f"budget={b:g} proxy={p}" for p in ("cold", "warm") for b in (0.2, 0.5)]
    print(table(accuracies, shares, cases))


if __name__ == "__main__":
    main()
