"""One schema for every figure a benchmark measures: a JSONL record with the environment it was measured in."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

COMMIT = "OSTLIGHT_COMMIT"
"""Environment variable: the commit to record where the files were copied without their history."""


def _commit() -> str:
    given = os.environ.get(COMMIT, "unknown")
    try:
        here = Path(__file__).parent
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
    except OSError:
        return given
    return (head.stdout.strip() or given) + ("+changes" if dirty.stdout.strip() else "")


def _versions(kind: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {"os": platform.platform(), "python": platform.python_version()}
    for name in ("torch", "numpy", "triton", "transformers", "lightning"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        versions["cuda"] = torch.version.cuda
    if kind == "cuda":
        versions["driver"] = _driver()
    return versions


def _driver() -> str:
    """Of the first GPU; a machine has one driver for all."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return output.splitlines()[0].strip()


def _device(kind: str) -> str:
    if kind == "cuda":
        gib = torch.cuda.get_device_properties().total_memory / 2**30
        return f"{torch.cuda.get_device_name()}, {gib:.1f} GiB"
    return f"{platform.machine()} {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def provenance(device: str = "cpu") -> dict[str, object]:
    """``commit``, ``device``, ``versions`` and ``when`` of what is measured now on ``cpu`` or ``cuda``."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return {"commit": _commit(), "device": _device(device), "versions": _versions(device), "when": when}


class Recorder:
    """Appends figures to a JSONL file and prints them.

    Args:
        bench: the script's name, e.g. ``bench_grad_dots``.
        out: file to append to; ``None`` only prints.
        device: ``cpu`` or ``cuda``, described in every record.
    """

    def __init__(self, bench: str, out: Path | str | None, device: str = "cpu") -> None:
        self.out = Path(out) if out else None
        self._provenance = provenance(device)
        self._bench = bench
        if self.out:
            self.out.parent.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        *,
        case: str,
        metric: str,
        value: float,
        unit: str,
        n: int,
        p20: float | None = None,
        p80: float | None = None,
    ) -> None:
        """One figure: ``value`` is the median of ``n`` measurements, ``p20`` and ``p80`` their percentiles."""
        record = {"bench": self._bench, "case": case, "metric": metric, "value": value, "unit": unit, "n": n}
        record |= {"p20": p20, "p80": p80, **self._provenance}
        record["when"] = datetime.now(UTC).isoformat(timespec="seconds")
        if self.out:
            with self.out.open("a") as file:
                file.write(json.dumps(record) + "\n")
        spread = f"  [{p20:.4g}, {p80:.4g}]" if p20 is not None and p80 is not None else ""
        print(f"{case:<70} {metric:<28} {value:>10.4g} {unit}{spread}", flush=True)
