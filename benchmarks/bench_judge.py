"""How many judgements a second does `llm_judge` get from a server that takes 200 ms, and what does a kill cost?

    python benchmarks/bench_judge.py --out /tmp/bench_judge.jsonl

The whole of `ostlight select` runs in a process of its own: pool read, images decoded and encoded, replies kept on
disk, shards written. The rate is taken at the server, from its first request to its last answer; the limit is
`concurrency / 0.2 s`. The last part kills a run of 10,000 samples with SIGKILL in the middle, runs it again,
and counts repeated requests and samples without a row.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import yaml
from _record import Recorder
from PIL import Image

from ostlight.pipeline.scoring.writer import audit
from ostlight.selection.scores import read_score_table

DELAY_S = 0.2
CONCURRENCY = 32
IMAGES = {"none": None, "48x48png": (48, 48, "png"), "640x480jpeg": (640, 480, "jpeg")}
SHARE_WANTED = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    parser.add_argument("--samples", type=int, default=3200, help="of the throughput runs")
    parser.add_argument("--killed", type=int, default=10_000, help="samples of the killed run; 0 leaves it out")
    options = parser.parse_args()
    record = Recorder("bench_judge", options.out)
    with tempfile.TemporaryDirectory() as folder:
        for name in IMAGES:
            throughput(record, Path(folder), name, options.samples)
        if options.killed:
            killed(record, Path(folder), options.killed)


def throughput(record: Recorder, folder: Path, images: str, samples: int) -> None:
    pool = write_pool(folder / images, samples, images)
    with loopback() as port:
        run = start(folder, images, pool, port)
        if run.wait():
            raise SystemExit(f"ostlight select failed with {run.returncode}")
        stats = server_stats(port)
    if (stats["requests"], stats["different"]) != (samples, samples):
        raise SystemExit(f"{stats} for {samples} samples")
    rate = stats["requests"] / stats["seconds"]
    case = f"concurrency={CONCURRENCY} delay_s={DELAY_S} images={images}"
    record.add(case=case, metric="requests_per_s", value=rate, unit="1/s", n=samples)
    record.add(case=case, metric="share_of_limit", value=rate * DELAY_S / CONCURRENCY, unit="", n=samples)


def killed(record: Recorder, folder: Path, samples: int) -> None:
    pool = write_pool(folder / "killed", samples, "48x48png")
    with loopback() as port:
        run = start(folder, "killed-run", pool, port)
        while server_stats(port)["requests"] < samples // 2:
            if run.poll() is not None:
                raise SystemExit("the run ended before it could be killed")
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        time.sleep(2 * DELAY_S)
        before = server_stats(port)
        if start(folder, "killed-run", pool, port).wait():
            raise SystemExit("the run was not resumed")
        after = server_stats(port)
    scores = folder / "killed-run" / "scores"
    audit(scores, samples)
    lost = read_score_table(scores)["score"].null_count + samples - after["different"]
    lines = [json.loads(line) for line in (folder / "killed-run" / "cost_log.jsonl").read_text().splitlines()]
    counted = sum(line["calls"] for line in lines if line["stage"] == "score")
    case = f"concurrency={CONCURRENCY} delay_s={DELAY_S} killed_after={int(before['requests'])} samples={samples}"
    repeated = after["requests"] - after["different"]
    record.add(case=case, metric="repeated_requests", value=repeated, unit="requests", n=1)
    record.add(case=case, metric="samples_without_score", value=lost, unit="samples", n=1)
    record.add(
        case=case, metric="requests_missing_in_cost_log", value=after["requests"] - counted, unit="requests", n=1
    )
    if repeated > CONCURRENCY or lost or after["most"] > 2:
        raise SystemExit(f"more requests were repeated than were under way, or samples were lost: {after}")


def write_pool(folder: Path, samples: int, images: str) -> Path:
    """A question a sample, and 64 noisy images in rotation."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    shape = IMAGES[images]
    if shape is not None:
        width, height, extension = shape
        for k in range(64):
            # Noise over a slope: about as many bytes as a photograph.
            slope = np.linspace(0, 200, width)[None, :, None] + rng.integers(0, 40, (height, width, 3))
            Image.fromarray(slope.astype(np.uint8)).save(folder / f"{k}.{extension}")
    with (folder / "pool.jsonl").open("w") as file:
        for n in range(samples):
            image = {} if shape is None else {"image": f"{n % 64}.{shape[2]}"}
            question = f"{'<image>' * len(image)}how many dots are in image {n}? " + "Look closely. " * 20
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": f"There are {n}. " * 20}]
            file.write(json.dumps({"id": str(n), **image, "conversations": turns}) + "\n")
    return folder / "pool.jsonl"


def start(folder: Path, name: str, pool: Path, port: int) -> subprocess.Popen[bytes]:
    options = {"model": "loopback", "base_url": f"http://127.0.0.1:{port}/v1", "concurrency": CONCURRENCY}
    config = {
        "name": name + "-run" if not name.endswith("-run") else name,
        "folder": str(folder),
        "pool": {"path": str(pool)},
        "selector": {"name": "llm_judge", "options": options},
        # Whole rounds of requests: 1024 is a multiple of the concurrency.
        "compute": {"accelerator": "cpu", "progress": False, "logger": "none", "shard_size": 1024},
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "ostlight.cli", "select", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, env=environment)


@contextmanager
def loopback() -> Iterator[int]:
    """Port of the server, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "_loopback_judge.py"), str(port), str(DELAY_S)]
    )
    try:
        for _ in range(200):
            try:
                server_stats(port)
                break
            except OSError:
                time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()


def server_stats(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats", timeout=30) as reply:
        return dict(json.load(reply))


if __name__ == "__main__":
    main()
