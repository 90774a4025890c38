"""Measures the report of a run of 100,000 samples: below 15 MB, built in 30 s and 2 GB, open in a browser in 3 s?

    python benchmarks/bench_report.py --out benchmarks/results/bench_report.jsonl

The run is synthetic (`_report_run.py`): 7 anchor groups of 64 probes, a fifth kept, one image a record, as large as a
photograph and rarely shared between the records of the page. The page is built in a process of its own, timed from
start to end, with its peak memory. Opening is timed from the navigation until the page's script has run; the
median over the visits is recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles

from _record import Recorder
from _report_run import write_run

sys.path.append(str(Path(__file__).parents[1] / "tests" / "reporting"))
from browser import find_chromium, launch

IMAGES = 2000
"""Enough that few of the records of a page share one."""
LIMITS = {"size": 15.0, "build": 30.0, "peak_rss": 2000.0, "open": 3.0}
"""MB, s, MB, s."""
BUILD = (
    "import json, resource, sys, ostlight; page = ostlight.report(sys.argv[1]);"
    "used = resource.getrusage(resource.RUSAGE_SELF);"
    "print(json.dumps({'page': str(page), 'peak': used.ru_maxrss / 1000, 'cpu': used.ru_utime + used.ru_stime}))"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="append the figures to this file")
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--visits", type=int, default=5)
    arguments = parser.parse_args()
    record = Recorder("bench_report", arguments.out)
    case = f"records={arguments.records} groups=7 probes=64"
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder), arguments.records, images=IMAGES)
        page, build_s, cpu_s, peak_mb = build(run)
        figures = {"size": page.stat().st_size / 1e6, "build": build_s, "peak_rss": peak_mb}
        for metric, unit in (("size", "MB"), ("build", "s"), ("peak_rss", "MB")):
            record.add(case=case, metric=metric, value=figures[metric], unit=unit, n=1)
        record.add(case=case, metric="build_cpu", value=cpu_s, unit="s", n=1)
        program = find_chromium()
        if program is None:
            print("Chromium is not installed: the time to open the page was not measured")
        else:
            p20, median, p80 = visits(program, page, arguments.visits)
            figures["open"] = median
            record.add(case=case, metric="open", value=median, unit="s", n=arguments.visits, p20=p20, p80=p80)
    above = [f"{name} {value:.3g} is above {LIMITS[name]:g}" for name, value in figures.items() if value > LIMITS[name]]
    if above:
        raise SystemExit("; ".join(above))


def build(run: Path) -> tuple[Path, float, float, float]:
    """Returns the page, seconds of the build process on the clock and on the CPU, and its peak memory in MB."""
    begin = time.perf_counter()
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(run)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | one_thread,
    )
    usage = json.loads(done.stdout)
    return Path(usage["page"]), time.perf_counter() - begin, usage["cpu"], usage["peak"]


def visits(program: str, page: Path, count: int) -> tuple[float, float, float]:
    """Returns the 20th, 50th and 80th percentile of the seconds until the page is ready."""
    with launch(program) as browser:
        times = [browser.open(page) for _ in range(count)]
        if browser.problems:
            raise SystemExit(f"the page has errors: {browser.problems}")
    deciles = quantiles(times, n=10, method="inclusive")
    return deciles[1], deciles[4], deciles[7]


if __name__ == "__main__":
    main()
