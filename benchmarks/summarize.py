"""Which figures of a benchmark are worth keeping? Writes at most 300 lines of them to benchmarks/results/.

    python benchmarks/summarize.py runs/accuracy                # a folder that `ostlight benchmark` has finished
    python benchmarks/summarize.py /tmp/bench_scoring.jsonl     # what a script of this folder recorded
    python benchmarks/summarize.py runs/accuracy --markdown     # prints a table instead

A finished benchmark has one line for each training seed, and the lines of a configuration become one: mean, 20th and
80th percentile, and number of seeds. Its AUROCs of right against wrong records follow, with the ends of their 95%
interval as metrics of their own and the pairs as ``n``. What a script recorded is aggregated already; of equal cases
the newest is kept.

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
    "loss": "nats",
    "defect_share": "share",
    "selection_flops": "FLOP",
    "training_flops": "FLOP",
    "kept": "samples",
    "unusable": "samples",
    "selection_s": "device-s",
    "training_s": "device-s",
    "selection_wall_s": "s",
    "training_wall_s": "s",
    "selection_calls": "requests",
    "selection_price": "price",
    "flops": "FLOP",
    "device_s": "device-s",
}
"""Unit of each metric of a finished benchmark."""

METRICS = (*list(UNITS)[:5], "accuracy by group", "loss by group", *list(UNITS)[5:])
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
    cases: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["value"] is None:  # e.g. the share of defects where none are known
            continue
        fields = {key: row.get(key, "") for key in ("variant", "selector", "budget", "protocol")}
        fields["group"] = "" if row["group"] == "all" else row["group"]
        case = _case(fields, cases)
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


def summarize_separation(name: str, rows: Iterable[Mapping[str, Any]], origin: Mapping[str, Any]) -> list[Record]:
    """What each selector's score tells of the known defects: ``auroc.jsonl`` of a benchmark, as records.

    Args:
        name: of the benchmark.
        rows: ``variant``, ``selector``, ``flops``, ``device_s``, and ``auroc``: for each kind of pair its ``value``,
            ``low``, ``high`` (of the 95% interval) and ``pairs``.
        origin: as of :func:`summarize_benchmark`.
    """
    records = []
    cases: dict[str, dict[str, str]] = {}
    for row in rows:
        case = _case({key: row.get(key, "") for key in ("variant", "selector")}, cases)
        figures = [
            (f"auroc {kind}{end}", area[column], "", area["pairs"])
            for kind, area in row["auroc"].items()
            if area is not None
            for end, column in (("", "value"), (" low", "low"), (" high", "high"))
            if area[column] is not None
        ]
        figures += [(metric, row[metric], UNITS[metric], 1) for metric in ("flops", "device_s")]
        records += [
            {"bench": name, "case": case, "metric": metric, "value": value, "unit": unit, "n": n}
            | {"p20": None, "p80": None, **origin}
            for metric, value, unit, n in figures
            if value is not None
        ]
    return records


def _case(fields: Mapping[str, Any], cases: dict[str, dict[str, str]]) -> str:
    """The fields as one text without spaces in their values.

    Args:
        cases: the fields of every text so far.

    Raises:
        SystemExit: other fields have this text.
    """
    given = {key: str(value) for key, value in fields.items() if value}
    case = " ".join(f"{key}={value.replace(' ', '_')}" for key, value in given.items())
    if cases.setdefault(case, given) != given:
        raise SystemExit(f"{cases[case]} and {given} are both written as {case!r}; rename one of them")
    return case


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


def _read(file: Path) -> list[Record]:
    """The lines of a file; none where a benchmark has not written it, as ``auroc.jsonl`` where no defects are known."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of a finished benchmark, or a JSONL file of records")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/NAME.jsonl")
    parser.add_argument("--limit", type=int, default=LIMIT, help="lines at most")
    parser.add_argument("--markdown", action="store_true", help="print a table and write nothing")
    options = parser.parse_args(arguments)
    source: Path = options.source
    if source.is_dir():
        origin = provenance()
        records = summarize_benchmark(source.name, _read(source / "results.jsonl"), origin)
        records += summarize_separation(source.name, _read(source / "auroc.jsonl"), origin)
    else:
        records = newest(_read(source))
    records, left_out = within_limit(records, options.limit)
    if options.markdown:
        print(markdown(records))
        return
    out = options.out or RESULTS / f"{source.name if source.is_dir() else source.stem}.jsonl"
    write(records, out)
    print(f"{out}: {len(records)} lines" + (f"; left out: {', '.join(left_out)}" if left_out else ""))


if __name__ == "__main__":
    main()
