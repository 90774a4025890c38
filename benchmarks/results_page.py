"""Turns a finished benchmark into its page under docs/results/: question, command, tables, picture, what the run noted.

    python benchmarks/results_page.py runs/accuracy

Nothing on the page is typed but what stands below its last heading, which is kept when the page is made again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.metrics import roc_auc_score

from ostlight.benchmarking.results import Interval
from ostlight.config.load import load_config
from ostlight.config.schema import Config

ROOT = Path(__file__).parents[1]
READING = "## What it says"
ANSWER_IS_RIGHT = ("clean", "near_duplicate")
"""Defects (and their absence) that leave an answer right."""
JUDGE = "llm_judge"
FEWEST_REPETITIONS = 3
SURE = 0.5
"""A judge's probability of yes above which it calls an answer right."""


def page(run: Path, config: Config, source: Path, before: str) -> str:
    """The page's Markdown.

    Args:
        run: the benchmark's folder, finished.
        config: its resolved configuration.
        source: the YAML it was run from; the comment at its head asks the question.
        before: the page as it was, whose reading is kept.
    """
    lines = source.read_text().splitlines()
    comment = [line.removeprefix("#").strip() for line in itertools.takewhile(lambda line: line.startswith("#"), lines)]
    commands = [line.removeprefix("Run:").strip() for line in comment if line.startswith(("python ", "Run:"))]
    told = " ".join(line for line in comment if not line.startswith(("python ", "Run:")))
    users = folder_users(run)
    right = judges(run, config, users)
    parts = [
        f"# {config.name.replace('_', ' ').capitalize()}",
        told,
        "\n".join(f"    {command}" for command in commands),
        f"Configuration: [{source.relative_to(ROOT)}](../../{source.relative_to(ROOT)}). This page was written by "
        f"`benchmarks/results_page.py`. Accuracies in percent with Student's 95% interval over the training seeds; "
        "differences are paired, with a bootstrap interval over seeds and test items. Selection counts warm-up, "
        "scoring and picking. Not in the totals: the training of the models that were there before (bases, a judge, "
        f"DEITA's scorer), and evaluation. {made(run)}",
        f"![accuracy and cost]({config.name}.png)",
        "## Accuracy",
        with_judges((run / "table.md").read_text().strip(), right),
        "## Cost",
        with_judges((run / "costs.md").read_text().strip(), right),
    ]
    names = folder_names(users, config)
    for title, variants in repetitions(config).items():
        parts += [f"## {title}", over(variants, run, config)]
    found = what_the_scores_know(run, config, names)
    if found:
        parts += ["## What the scores know of the truth", found]
    noted = notes(run, names)
    if noted:
        parts += ["## What the runs noted", noted]
    reading = before[before.index(READING) + len(READING) :].strip() if READING in before else ""
    return "\n\n".join([*parts, READING, reading]).rstrip() + "\n"


def repetitions(config: Config) -> dict[str, list[str]]:
    """Variants to take a mean over, by the heading it stands under: those that differ in seeds alone, and all that have
    a seed of their own, where there are enough of them."""
    assert config.benchmark is not None
    variants = config.benchmark.variants
    alike = [v.label for v in variants if v.overrides and all("seed=" in o for o in v.overrides)]
    own = [v.label for v in variants if any("seed=" in o for o in v.overrides)]
    found = {"Over the repetitions": alike} | ({"Over all pools": own} if own != alike else {})
    return {title: labels for title, labels in found.items() if len(labels) >= FEWEST_REPETITIONS}


def over(variants: Sequence[str], run: Path, config: Config) -> str:
    """Means over these variants; with differences to the baseline, paired by variant, and Student's interval."""
    assert config.benchmark is not None
    accuracy: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for line in (run / "results.jsonl").read_text().splitlines():
        cell = json.loads(line)
        if (cell["group"], cell["metric"]) == ("all", "accuracy"):
            row = accuracy.setdefault((cell["selector"], cell["budget"], cell["protocol"]), defaultdict(list))
            row[cell["variant"]].append(100 * cell["value"])
    means = {row: np.array([np.mean(found[v]) for v in variants]) for row, found in accuracy.items()}
    baseline = config.benchmark.baseline
    lines = [f"| selector | budget | protocol | accuracy (95%) | difference to {baseline} (95%) |"]
    lines.append("| --- | --- | --- | ---: | ---: |")
    for (selector, *at), values in means.items():
        rival, whole = means.get((baseline, *at)), Interval.of(values)
        apart = None if rival is None or selector == baseline else Interval.of(values - rival)
        paired = "" if apart is None else f"{apart.mean:+.1f} ± {apart.half:.1f}"
        lines.append(f"| {selector} | {' | '.join(at)} | {whole.mean:.1f} ± {whole.half:.1f} | {paired} |")
    return "\n".join(lines)


def folder_users(run: Path) -> dict[str, list[tuple[str, str]]]:
    """Variant and name in the tables of those who use each folder of warm-ups and scores, as the benchmark wrote them
    down; a folder that an earlier state of the code left has none.

    Raises:
        SystemExit: it was written by a version that did not tell the warm-ups.
    """
    users: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in map(json.loads, (run / "scored.jsonl").read_text().splitlines()):
        if "proxy" not in row:
            raise SystemExit(f"{run} is of an earlier version; run `ostlight benchmark` once more (seconds)")
        for folder, name in ((row["scores"], row["selector"]), (row["proxy"], "warm-up")):
            if folder and (row["variant"], name) not in users[Path(folder).name]:
                users[Path(folder).name].append((row["variant"], name))
    return users


def folder_names(users: Mapping[str, Sequence[tuple[str, str]]], config: Config) -> dict[str, str]:
    """What the folders are called on the page: with the variants that use them, where those are not all."""
    many = len(config.benchmark.variants) if config.benchmark else 0
    names = {}
    for folder, found in users.items():
        variants = list(dict.fromkeys(variant for variant, _ in found if variant))
        names[folder] = found[-1][1] + (f" ({'; '.join(variants)})" if 0 < len(variants) < many else "")
    return names


def judges(run: Path, config: Config, users: Mapping[str, Sequence[tuple[str, str]]]) -> dict[tuple[str, str], str]:
    """How often each judge is right of the pool's answers, by variant and name."""
    assert config.benchmark is not None
    labels = {s.shown for s in config.benchmark.selectors if s.name == JUDGE}
    found = {}
    for folder, lines in users.items():
        mine = [line for line in lines if line[1] in labels]
        known = scores_and_defects(run / "selectors" / folder) if mine else None
        if known is not None:
            found |= dict.fromkeys(mine, judged(*known).partition(" (")[0])
    return found


def with_judges(table: str, right: Mapping[tuple[str, str], str]) -> str:
    """The table, each judge's lines marked with how often it is right, so that a weak one is not taken for judging."""
    head, *rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in table.splitlines()]
    at = head.index("selector")
    for row in rows:
        said = right.get((row[0] if at else "", row[at]))
        row[at] += f" ({said})" if said else ""
    told = "\n\nIn brackets: how often a judge's yes or no was right, of the pool it chose from." if right else ""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, *rows]) + told


def made(run: Path) -> str:
    """Day of the last training, processor and versions."""
    day = date.fromtimestamp(max(file.stat().st_mtime for file in (run / "trained").glob("*.json")))
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else []
    kinds = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"Made on {day} on {len(names) or '?'} cores of {names[0] if names else platform.processor()}; {kinds}."


def what_the_scores_know(run: Path, config: Config, shown: dict[str, str]) -> str:
    """How well each score tells right answers from wrong ones, read after the fact; a judge's own accuracy."""
    assert config.benchmark is not None
    names = {s.shown: s.name for s in config.benchmark.selectors}
    rows = []
    for folder in sorted((run / "selectors").iterdir()):
        label = folder.name.rpartition("-")[0]
        if folder.name not in shown or names.get(label) not in (JUDGE, "deita", "ost", "loss"):
            continue
        known = scores_and_defects(folder)
        if known is None:
            continue
        values, defects = known
        right = np.array([d in ANSWER_IS_RIGHT for d in defects])
        area = f"{roc_auc_score(right, values):.3f}" if 0 < right.sum() < len(right) else ""
        said = judged(values, defects) if names[label] == JUDGE else ""
        rows.append(f"| {shown[folder.name]} | {len(values):,} | {area} | {said} |")
    own_accuracy = trained_accuracy(config)
    head = "| scores | records | AUROC, right answers against wrong | as a judge |\n| --- | ---: | ---: | --- |\n"
    return head + "\n".join([*rows, *own_accuracy]) if rows else ""


def scores_and_defects(folder: Path) -> tuple[np.ndarray, list[str]] | None:
    """``[N]`` scores and what is wrong with each sample, ``None`` where nobody knows."""
    truth = Path(str(load_config(folder / "config.yaml").pool.path)).parent / "defect_labels.parquet"
    if not truth.is_file():
        return None
    table = pq.read_table(truth)
    defect = dict(zip(table["id"].to_pylist(), table["defect"].to_pylist(), strict=True))
    scores = pq.read_table(folder / "scores", columns=["id", "score"])
    rows = zip(*(scores[c].to_pylist() for c in ("id", "score")), strict=True)
    pairs = [(s, defect[i]) for i, s in rows if s is not None]
    return np.array([s for s, _ in pairs]), [d for _, d in pairs]


def trained_accuracy(config: Config) -> list[str]:
    """What the training of each rival's model found on the development digits, which no pool holds."""
    assert config.benchmark is not None
    lines = []
    for selector in config.benchmark.selectors:
        named = {str(selector.options[key]) for key in ("model", "quality") if key in selector.options}
        for file in sorted(ROOT / name / "training.json" for name in named):
            found = json.loads(file.read_text()).get("right_on_dev_digits") if file.is_file() else None
            if found:
                each = "; ".join(f"{kind} {100 * share:.0f}%" for kind, share in found.items() if kind != "all")
                whole = f"{100 * found['all']:.1f}% right"
                lines.append(f"\n{selector.shown} on digits of neither pool nor test: {whole} ({each}).")
    return lines


def judged(values: np.ndarray, defects: list[str]) -> str:
    """Accuracy of yes and no, over all and by defect."""
    by: dict[str, list[bool]] = {}
    for value, defect in zip(values, defects, strict=True):
        by.setdefault(defect, []).append((value > SURE) == (defect in ANSWER_IS_RIGHT))
    whole = [x for found in by.values() for x in found]
    each = ", ".join(f"{defect} {100 * np.mean(found):.0f}%" for defect, found in sorted(by.items()))
    return f"{100 * np.mean(whole):.1f}% right ({each})"


def notes(run: Path, shown: dict[str, str]) -> str:
    """What each warm-up kept, and what each selector noted of its run."""
    lines = []
    for file in sorted(run.glob("proxies/*/proxy/warmup.json")):
        said, name = json.loads(file.read_text()), file.parents[1].name
        losses = dict(said.get("losses") or [])
        kept = said.get("kept_step")
        if name in shown and kept is not None:
            lines.append(
                f"- {shown[name]}: warmed up on {said['samples']:,} samples, kept at step {kept}; loss on "
                f"the {said['watched_on']} {losses[0]:.3f} before, {losses[kept]:.3f} after"
            )
    for file in sorted(run.glob("selectors/*/selector/notes.json")):
        said, name = json.loads(file.read_text()), file.parents[1].name
        if name not in shown:
            continue
        told = [f"step size {said['step_size']:.4g}"] if isinstance(said.get("step_size"), int | float) else []
        agreement = said.get("rank_agreement")
        if isinstance(agreement, dict) and agreement.get("spearman") is not None:
            told.append(f"Spearman {agreement['spearman']:.2f} with `exact` on {agreement.get('samples', '?')} samples")
        if told:
            lines.append(f"- {shown[name]}: {', '.join(told)}")
        lines += [f"  - {line}" for line in trials(file.parents[1] / "cost_log.jsonl")]
    return "\n".join(lines)


def trials(cost_log: Path) -> list[str]:
    """What was tried for each budget, and what was kept."""
    told = {}
    for entry in map(json.loads, cost_log.read_text().splitlines()):
        found = entry["more"].get("noted", {}).get("trial")
        if found:
            losses = ", ".join(
                f"{name} {'diverged' if each is None else f'{np.mean(each):.4f}'}"
                for name, each in found["losses"].items()
            )
            budget = entry["more"]["budget"]
            told[budget] = f"{budget}: kept {found['kept']}; mean loss after its trials: {losses}"
    return list(told.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished benchmark")
    parser.add_argument("--config", type=Path, default=None, help="its YAML; by default configs/benchmark/NAME.yaml")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    options = parser.parse_args()
    config = load_config(options.run / "config.yaml")
    source = (options.config or ROOT / "configs" / "benchmark" / f"{config.name}.yaml").resolve()
    file = options.out / f"{config.name}.md"
    before = file.read_text() if file.exists() else ""
    options.out.mkdir(parents=True, exist_ok=True)
    file.write_text(page(options.run, config, source, before))
    shutil.copyfile(options.run / "table.png", options.out / f"{config.name}.png")
    print(f"written: {file}")


if __name__ == "__main__":
    main()
