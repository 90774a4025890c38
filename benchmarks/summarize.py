"""Which figures of a benchmark are worth keeping? Writes at most 300 lines of them to benchmarks/results/.

    python benchmarks/summarize.py runs/accuracy                # a folder that `ostlight benchmark` has finished
    python benchmarks/summarize.py /tmp/bench_scoring.jsonl     # what a script of this folder recorded
    python benchmarks/summarize.py runs/accuracy --markdown     # prints a table instead

A finished benchmark has one line for each training seed, and the lines of a configuration become one: mean, 20th and
80th percentile, and number of seeds. What a script recorded is aggregated already; of equal cases the newest is kept.

Every line follows one schema, that of `_record.py`: ``{bench, case, metric, value, unit, n, p20, p80, commit, device,
versions, when}``. Numbers keep six digits. Where there are more lines than the limit, whole metrics are left out, those
at the end of ``METRICS`` first, and the command says which.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _record import provenance

RESULTS = Path(__file__).parent / "results"
LIMIT = 300
UNITS = {
    "accuracy": "share",
    "defect_share": "share",
    "selection_flops": "FLOP",
    "training_flops": "FLOP",
    "kept": "samples",
    "selection_s": "device-s",
    "training_s": "device-s",
    "selection_wall_s": "s",
    "training_wall_s": "s",
    "selection_calls": "requests",
    "selection_price": "price",
}
"""Unit of each metric of a finished benchmark."""

METRICS = ("accuracy", "defect_share", "selection_flops", "training_flops", "accuracy by group", *list(UNITS)[4:])
"""Most important first."""

Record = dict[str, Any]


def summarize_benchmark(name: str, rows: Iterable[Mapping[str, Any]], origin: Mapping[str, Any]) -> list[Record]:
    """One record for each configuration, group and metric.

    Args:
        name: of the benchmark.
        rows: ``selector``, ``budget``, ``protocol``, ``variant``, ``seed``, ``group``, ``metric`` and ``value`` of one
            trained model each.
        origin: ``commit``, ``device``, ``versions`` and ``when``.
    """
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["value"] is None:  # e.g. the share of defects where none are known
            continue
        fields = {key: row.get(key, "") for key in ("variant", "selector", "budget", "protocol")}
        fields["group"] = "" if row["group"] == "all" else row["group"]
        case = " ".join(f"{key}={str(value).replace(' ', '_')}" for key, value in fields.items() if value)
        values.setdefault((case, row["metric"]), []).append(float(row["value"]))
    return [
        {
            "bench": name,
            "case": case,
            "metric": metric,
            "value": float(np.mean(seeds)),
            "unit": UNITS.get(metric, ""),
            "n": len(seeds),
            "p20": float(np.percentile(seeds, 20)),
            "p80": float(np.percentile(seeds, 80)),
            **origin,
        }
        for (case, metric), seeds in values.items()
    ]


def newest(records: Iterable[Record]) -> list[Record]:
    """Of records of the same case, metric and device the last one."""
    return list({(r["bench"], r["case"], r["metric"], r["device"]): r for r in records}.values())


def within_limit(records: Sequence[Record], limit: int = LIMIT) -> tuple[list[Record], list[str]]:
    """The records of the most important metrics that fit, and the names of the metrics that do not."""
    names = [f"{r['metric']} by group" if "group=" in r["case"] else r["metric"] for r in records]
    known = [metric for metric in METRICS if metric in names]
    kept: set[str] = set()
    for metric in [*known, *dict.fromkeys(name for name in names if name not in known)]:
        if sum(name in kept | {metric} for name in names) <= limit:
            kept.add(metric)
    selected = [r for r, name in zip(records, names, strict=True) if name in kept]
    return selected, sorted(set(names) - kept)


def write(records: Iterable[Record], path: Path) -> None:
    """One JSON object a line, numbers to six digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = [{k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in record.items()} for record in records]
    path.write_text("".join(json.dumps(record) + "\n" for record in rounded))


def markdown(records: Sequence[Record]) -> str:
    """A table with a row for each case and a column for each metric."""
    metrics = list(dict.fromkeys(r["metric"] for r in records))
    rows: dict[str, dict[str, str]] = {}
    for r in records:
        spread = "" if r["p20"] is None or r["n"] < 2 else f" [{r['p20']:.3g}, {r['p80']:.3g}]"
        rows.setdefault(r["case"], {})[r["metric"]] = f"{r['value']:.3g}{spread}"
    lines = [f"| case | {' | '.join(metrics)} |", f"| --- |{' ---: |' * len(metrics)}"]
    lines += [f"| {case} | {' | '.join(row.get(metric, '') for metric in metrics)} |" for case, row in rows.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of a finished benchmark, or a JSONL file of records")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/NAME.jsonl")
    parser.add_argument("--limit", type=int, default=LIMIT, help="lines at most")
    parser.add_argument("--markdown", action="store_true", help="print a table and write nothing")
    options = parser.parse_args(arguments)
    source: Path = options.source
    file = source / "results.jsonl" if source.is_dir() else source
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    records = summarize_benchmark(source.name, rows, provenance()) if source.is_dir() else newest(rows)
    records, left_out = within_limit(records, options.limit)
    if options.markdown:
        print(markdown(records))
        return
    out = options.out or RESULTS / f"{source.name if source.is_dir() else source.stem}.jsonl"
    write(records, out)
    print(f"{out}: {len(records)} lines" + (f"; left out: {', '.join(left_out)}" if left_out else ""))


if __name__ == "__main__":
    main()
