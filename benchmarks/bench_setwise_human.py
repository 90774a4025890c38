"""Which objective picks the better training set when people mislabelled 41% of it?

    python benchmarks/bench_setwise_human.py --data FOLDER --seeds 5 --out benchmarks/results/bench_setwise_human.jsonl

8,400 photographs of ten classes with one person's label each. There is no pretrained model at this size: features of
random patches stand in for one (`_setwise_human.RandomPatches`). A small perceptron on them (proxy) and a larger one
(target) are first trained on the 100 anchors and a random 5% of the pool with its labels as they are; the target is
then fine-tuned on each picked set, the same number of steps for every set. A seed draws the 5%, the models and the
probes; the pool, the anchors and the test split are the same for every seed. ``--settings`` reads base, full, random
and oracle on the development split and no ranking: learning rate and steps were set there. The test split is for
reporting.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from _record import Recorder
from _setwise_human import load
from _setwise_perceptrons import (
    BATCH,
    CLASSES,
    PROXY_WIDTH,
    TARGET_WIDTH,
    Cut,
    Model,
    Scored,
    accuracy,
    fresh,
    losses,
    single,
    trained,
)
from _setwise_picker import Notes, Picker, table, written
from sklearn.metrics import roc_auc_score

from ostlight.selection.set_objective import Limits, Scale, gradient_clusters, quota_limits

ROOT = Path(__file__).parents[1]
LR, STEPS, PRETRAIN_STEPS, WARM_SHARE = 0.03, 600, 60, 0.05
BUDGETS = (0.2, 0.5)


class HumanPicker(Picker):
    """Every ranking at one budget."""

    lr = LR
    plain_scales = tuple(Scale(e) for e in (0.5, 2, 8))
    batch_scales = tuple(Scale(eta, b) for eta in (0.5, 1.5, 5.0) for b in (32, 256))

    def all(self) -> None:
        whole = Limits.count(self.size, self.count)
        by_label = quota_limits(self.scored.digits["pool"][1].numpy(), self.size)
        few = self.scored.phi(64)
        by_cluster = quota_limits(gradient_clusters(self.scored.f, few, 2 * CLASSES, self.scored.seed), self.size)
        for name, values in utilities(self.scored, few).items():
            self.picks[name], self.picks[f"{name} by label"] = whole.fill(values), by_label.fill(values)
        self.sets("K=64", few, whole)
        self.sets("K=256", self.scored.phi(256), whole)
        self.sets("K=64 by label", few, by_label)
        self.sets("K=64 by cluster", few, by_cluster)


def utilities(scored: Scored, phi: np.ndarray) -> dict[str, np.ndarray]:
    """Sample by sample, at the step that the rule sets."""
    eta = scored.eta
    return {
        "first_order": scored.f,
        "exact": scored.exact(eta),
        "low loss": -scored.loss,
        "second_order K=64": eta * scored.f - eta**2 / 2 * (phi**2).sum(1),
    }


def begun(cut: Cut, seed: int) -> tuple[Model, Model, float]:
    """Target and proxy after the anchors and the random part of the pool, and the proxy's median update norm."""
    count = len(cut.wrong)
    few = np.random.default_rng(seed).permutation(count)[: round(WARM_SHARE * count)]
    start = tuple(torch.cat([cut["anchors"][i], cut["pool"][i][few]]) for i in (0, 1))
    everything, inputs = np.arange(len(start[1])), cut["pool"][0].shape[1]
    (target, _), (proxy, norms) = (
        trained(
            fresh(inputs, width, seed + k, cut["pool"][0].dtype), start, [everything], PRETRAIN_STEPS, BATCH, seed, LR
        )
        for k, width in enumerate((TARGET_WIDTH, PROXY_WIDTH))
    )
    return single(target), single(proxy), float(norms.median())


def one_seed(cut: Cut, seed: int, split: str, rankings: bool = True) -> tuple[Notes, Notes, Notes]:
    """Accuracies and clean shares by (case, ranking), and notes."""
    rng, count, clean = np.random.default_rng(seed + 1_000), len(cut.wrong), np.flatnonzero(~cut.wrong)
    target, proxy, norm = begun(cut, seed)
    full, _ = trained(target, cut["pool"], [np.arange(count)], STEPS, BATCH, seed, LR)
    accuracies = {
        ("", "base"): float(accuracy(target, *cut[split])),
        ("", "full"): float(accuracy(full, *cut[split])[0]),
    }
    shares, notes = {}, {"|anchor_loss": float(losses(proxy, *cut["anchors"]).mean())}
    scored = Scored(proxy, cut, None, norm, seed)
    notes["|step_size_by_rule"] = scored.eta
    for name, values in utilities(scored, scored.phi(64)).items() if rankings else ():
        notes[f"|{name}|wrong_auroc"] = float(roc_auc_score(cut.wrong, -values))
    for fraction in BUDGETS:
        case, size = f"budget={fraction:g}", round(fraction * count)
        sets = {(case, "random"): rng.permutation(count)[:size], (case, "oracle"): rng.permutation(clean)[:size]}
        if rankings:
            picker = HumanPicker(scored, size)
            picker.all()
            sets |= {(case, ranking): rows for ranking, rows in picker.picks.items()}
            notes |= {f"{case}|{k}": v for k, v in picker.notes.items()}
        models, _ = trained(target, cut["pool"], list(sets.values()), STEPS, BATCH, seed, LR)
        accuracies |= dict(zip(sets, accuracy(models, *cut[split]).tolist(), strict=True))
        shares |= {key: float(1 - cut.wrong[rows].mean()) for key, rows in sets.items()}
    return accuracies, shares, notes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the records")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "bench_setwise_human", help="keeps the features")
    parser.add_argument("--out", type=Path, help="append the figures to this file")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--settings", action="store_true", help="base, full, random and oracle on dev, no ranking")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cut, split = load(asked.data, asked.cache), "dev" if asked.settings else "test"
    record = Recorder("bench_setwise_human", asked.out)
    accuracies, shares, notes = defaultdict(list), defaultdict(list), defaultdict(list)
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        found = one_seed(cut, seed, split, rankings=not asked.settings)
        for store, values in zip((accuracies, shares, notes), found, strict=True):
            for key, value in values.items():
                store[key].append(value)  # type: ignore[index]
        print(f"seed {seed} done", flush=True)
    written(record, split, accuracies, shares, notes, () if asked.settings else ("exact", "low loss"))
    print(table(accuracies, shares, [f"budget={b:g}" for b in BUDGETS]))


if __name__ == "__main__":
    main()
