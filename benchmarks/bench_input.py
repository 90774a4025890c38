"""How fast are images read, what does it take in memory, and does the model wait for them?

    python benchmarks/bench_input.py --out /tmp/bench_input.jsonl

- `rate`: samples a second that one core reads, decodes and processes, of JPEGs of 448, 672 and 1,024 pixels, by the
  processors of three families at their published settings. Measured in processor time, so that other work on the
  machine does not count. `tokens` are those of a sample.
- `memory`: peak of the process that reads for scoring, in windows and with whole shards.
- `training`: what a training with worker processes leaves of the rate of a bare loop on batches that are there already,
  in processor time of the process that trains: what it reaches where each of the processes has a core of its own.
- `select`: the rate at which `ostlight select` scores over that of the engine on the same batches: reading, encoding,
  batching, moving and writing are what it loses. In processor time of the process that scores: with workers, what it
  reaches where each of them has a core of its own and they keep up.
- `vision`: training and scoring with stored features of a frozen vision tower over the same without, in processor time.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import torch
from _photo_pools import READERS, write_pool, write_processor, write_qwen
from _record import Recorder
from bench_stream import write_pool as write_texts
from lightning.pytorch.callbacks import Callback

import ostlight
from ostlight.config.schema import Compute, Model, Training
from ostlight.data.pool import Pool
from ostlight.data.remote_cache import CACHE_FOLDER
from ostlight.digitmath.model import checkpoint
from ostlight.influence import UtilityScorer
from ostlight.models.batch import Collator
from ostlight.models.cost import StageCost
from ostlight.models.influence_task import SampleTask
from ostlight.models.load import load_encoder
from ostlight.models.module import MultimodalModel
from ostlight.models.parts import freeze
from ostlight.models.vision.cache import opened
from ostlight.pipeline.scoring import stream
from ostlight.pipeline.scoring.batch_scorer import BatchScorer
from ostlight.pipeline.scoring.module import ScoringModule
from ostlight.pipeline.scoring.stream import Encoding, ShardStream
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.steps import EncodedPool, StepDataset, plan_steps

SIDES = (448, 672, 1024)
RATE_SAMPLES = 24
MEMORY_SAMPLES = 48
MAX_LENGTH = 16_384


def rate(recorder: Recorder, folder: Path) -> None:
    for family in READERS:
        settings = Model(path=str(write_processor(family, folder / family)), max_length=MAX_LENGTH)
        encoder = load_encoder(settings, "proxy")
        for side in SIDES:
            pool = Pool.open(write_pool(folder, side, RATE_SAMPLES))
            encoder.encode(pool[0])
            seconds, nbytes, tokens = [], 0, 0
            for k in range(RATE_SAMPLES):
                start = time.process_time()
                encoded = encoder.encode(pool[k])
                seconds.append(time.process_time() - start)
                nbytes, tokens = encoded.nbytes, len(encoded)
            case = f"part=rate family={family} pixels={side}"
            low, middle, high = (torch.tensor(seconds).quantile(q).item() for q in (0.2, 0.5, 0.8))
            recorder.add(case=case, metric="rate", value=1 / middle, unit="samples/core/s", n=RATE_SAMPLES,
                         p20=1 / high, p80=1 / low)  # fmt: skip
            recorder.add(case=case, metric="tokens", value=tokens, unit="tokens", n=1)
            recorder.add(case=case, metric="encoded", value=nbytes / 1e6, unit="MB", n=1)


def memory(recorder: Recorder) -> None:
    for family in ("qwen2_5_vl", "smolvlm"):
        for window in ("2**28", "2**62"):
            command = [sys.executable, __file__, "--stream", family, "--window", window]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            name = "window" if window == "2**28" else "whole_shard"
            case = f"part=memory family={family} pixels=1024 records={MEMORY_SAMPLES} batches_from={name}"
            for metric, value in zip(("peak_rss", "until_first_batch"), found, strict=True):
                unit = "MB" if metric == "peak_rss" else "s"
                recorder.add(case=case, metric=metric, value=float(value), unit=unit, n=1)


def stream_once(family: str, window: int) -> None:
    """Prints the peak memory beyond that of an idle process, and the seconds until the first batch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Model(path=str(write_processor(family, folder / family)), max_length=MAX_LENGTH)
        encoder = load_encoder(settings, "proxy")
        pool = Pool.open(write_pool(folder, 1024, MEMORY_SAMPLES))
        encoder.encode(pool[0])
        idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        stream.WINDOW_BYTES = window
        start, first = time.process_time(), 0.0
        encoding = Encoding(encoder, Collator(images_by_sample=family == "smolvlm"))
        for _ in ShardStream(pool, [0], Compute(tokens_per_batch=16_384), encoding):
            first = first or time.process_time() - start
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle) * 1024 / 1e6, first)


class LoopClock(Callback):
    """Processor time of this process between the first step and the last."""

    seconds = 0.0

    def on_train_start(self, *_: Any) -> None:
        self._start = time.process_time()

    def on_train_end(self, *_: Any) -> None:
        self.seconds = time.process_time() - self._start


def training(recorder: Recorder, folder: Path, samples: int) -> None:
    """One thread computes, other processes read."""
    torch.set_num_threads(1)
    path = write_qwen(folder / "model", width=128, layers=4)
    pool = Pool.open(write_pool(folder, 448, samples))
    settings = Training(epochs=1, batch_size=8, lr=1e-4)

    def load() -> MultimodalModel:
        return MultimodalModel.load(Model(path=str(path), max_length=MAX_LENGTH), "proxy", settings)

    model = load()
    steps = StepDataset(
        EncodedPool(pool, range(samples), model.encoder), plan_steps(samples, settings, 0), model.collator, 4096
    )
    cached = [steps[k] for k in range(len(steps))]
    _bare_loop(model, cached[:1])
    bare = _cpu_seconds(_bare_loop, model, cached)
    reading = _cpu_seconds(lambda: [model.encoder.encode(pool[k]) for k in range(samples)])
    case = f"part=training family=qwen2_5_vl pixels=448 samples={samples}"
    recorder.add(case=case, metric="bare_loop", value=samples / bare, unit="samples/core/s", n=1)
    recorder.add(case=case, metric="reading", value=samples / reading, unit="samples/core/s", n=1)
    for workers in (0, 2):
        model, clock = load(), LoopClock()
        compute = Compute(
            accelerator="cpu", logger="none", progress=False, tokens_per_batch=4096, workers=workers
        )  # fmt: skip
        job = TrainingJob(compute, folder, "train", callbacks=[clock], quiet=True)
        fit(model, EncodedPool(pool, range(samples), model.encoder), job, StageCost("train"))
        share = bare / clock.seconds
        recorder.add(case=f"{case} workers={workers}", metric="share_of_bare_loop", value=share, unit="ratio", n=1)


def _bare_loop(model: MultimodalModel, steps: list[Any]) -> None:
    optimizer = torch.optim.AdamW(model.trained.values(), lr=1e-4, fused=True)
    for step in steps:
        optimizer.zero_grad()
        for micro in step.micro_batches:
            (model.losses(micro).sum() * step.weight).backward()
        torch.nn.utils.clip_grad_norm_(model.trained.values(), 1.0)
        optimizer.step()


def _cpu_seconds(work: Callable[..., object], *arguments: Any) -> float:
    start = time.process_time()
    work(*arguments)
    return time.process_time() - start


def select(recorder: Recorder, folder: Path, workers: list[int], proxy: Path | None) -> None:
    """Of the processor time of one thread from the first record to the last score, without the selector's set-up.

    Args:
        proxy: folder of a text model, which scores records of about 100 tokens; ``None`` for DigitMath and its own.
    """
    torch.set_num_threads(1)
    engine = timed(BatchScorer, "score")
    loop = timed(L.Trainer, "predict")
    set_up = timed(ScoringModule, "ensure_set_up")
    records = 600 if proxy is None else 40
    data: dict[str, Any] = {"digitmath": {"pool": records, "anchors": 28, "dev": 14, "test": 14}}
    if proxy is not None:
        write_texts(folder / "texts.jsonl", records)
        write_texts(folder / "anchors.jsonl", 10)
        data = {"pool": {"path": str(folder / "texts.jsonl")}, "anchors": {"path": str(folder / "anchors.jsonl")}}
    estimators: dict[str, dict[str, int]] = {"first_order": {}, "projected": {"rank": 8}}
    for (estimator, more), count in product(estimators.items(), workers):
        for clock in (engine, loop, set_up):
            clock.clear()
        options = {"estimator": estimator, "step": "sgd", "step_size": 0.1} | more
        config = data | {
            "name": f"{estimator}-{count}",
            "folder": str(folder / "runs"),
            "proxy": {"path": str(proxy or checkpoint("proxy")), "warmup": {"fraction": 0}},
            "selector": {"name": "ost", "options": options},
            "compute": {
                "accelerator": "cpu",
                "logger": "none",
                "progress": False,
                "tokens_per_batch": 4096 if proxy is None else 1024,
                "shard_size": 100,
                "workers": count,
            },
        }
        ostlight.select(config)
        share = sum(engine) / (sum(loop) - sum(set_up))
        model = "digitmath" if proxy is None else proxy.name
        case = f"part=select model={model} estimator={estimator} records={records} workers={count}"
        recorder.add(case=case, metric="engine_share", value=share, unit="ratio", n=1)


def timed(owner: Any, name: str) -> list[float]:
    """Processor time of each call of a method, from now on."""
    seconds: list[float] = []
    whole = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return whole(*arguments, **options)
        finally:
            seconds.append(time.process_time() - start)

    setattr(owner, name, call)
    return seconds


def vision(recorder: Recorder, folder: Path, samples: int) -> None:
    """A Qwen2.5-VL whose tower is larger than its language model, trained with a frozen tower, and scored."""
    torch.set_num_threads(1)
    os.environ[CACHE_FOLDER] = str(folder / "cache")
    path = write_qwen(folder / "model", width=128, layers=2, tower=256, depth=10)
    pool = Pool.open(write_pool(folder, 224, samples, photographs=samples))
    settings = Training(epochs=1, batch_size=8, lr=1e-4)
    model = MultimodalModel.load(Model(path=str(path), max_length=MAX_LENGTH), "proxy", settings)
    freeze(model.model, ["vision"])
    data = EncodedPool(pool, range(samples), model.encoder)
    steps = StepDataset(data, plan_steps(samples, settings, 0), model.collator, 4096)
    made = [steps[k] for k in range(len(steps))]
    batches = [batch for step in made for batch in step.micro_batches]
    scorer = UtilityScorer(
        model.model, batches[:1], loss=SampleTask(), estimator="finite_difference", step_size=1e-3, calibration=batches
    )
    work = {
        "training": lambda: _bare_loop(model, made),
        "scoring": lambda: [scorer(batch) for batch in batches],
    }
    computed = {name: _cpu_seconds(run) for name, run in work.items()}
    with opened(8, "bench"):
        first = {name: _cpu_seconds(run) for name, run in work.items()}
        stored = {name: _cpu_seconds(run) for name, run in work.items()}
    case = f"part=vision family=qwen2_5_vl pixels=224 samples={samples}"
    for name, seconds in computed.items():
        for when, then in (("first_pass", first), ("later", stored)):
            recorder.add(case=f"{case} {when}", metric=f"{name}_speedup", value=seconds / then[name], unit="ratio", n=1)


PARTS = ("rate", "memory", "training", "select", "vision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSONL file to append to")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--samples", type=int, default=48, help="of the training")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="of selecting")
    parser.add_argument("--proxy", type=Path, help="folder of a text model that selects; by default DigitMath's proxy")
    parser.add_argument("--stream", help=argparse.SUPPRESS)
    parser.add_argument("--window", default="2**28", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stream:
        base, power = map(int, options.window.split("**"))
        return stream_once(options.stream, base**power)
    recorder = Recorder("bench_input", options.out)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "rate" in options.part:
            rate(recorder, folder / "rate")
        if "memory" in options.part:
            memory(recorder)
        if "training" in options.part:
            training(recorder, folder / "training", options.samples)
        if "select" in options.part:
            (folder / "select").mkdir()
            select(recorder, folder / "select", options.workers, options.proxy)
        if "vision" in options.part:
            vision(recorder, folder / "vision", options.samples)
    return None


if __name__ == "__main__":
    main()
