"""Pretrained models and pools with other people's mistakes, for `ostlight benchmark`: from packages of the registry.

    python benchmarks/pretrained.py text                         # SmolLM2-135M-Instruct
    python benchmarks/pretrained.py gsm8k --data FOLDER          # solutions of four models, 62% of them wrong
    python benchmarks/pretrained.py people                       # SmolLM2 trained on 1,000 people's right solutions
    python benchmarks/pretrained.py proxy --blocks 10            # ten of its 30 blocks, trained on the pool's text
    python benchmarks/pretrained.py scores --run runs/gsm8k_scores   # of a finished benchmark, as one table
    python benchmarks/pretrained.py agreement                   # in it, of the ten blocks with the whole model
    python benchmarks/pretrained.py vision --data FOLDER --blocks 30   # EfficientNet-Lite0 before SmolLM2; photographs
    python benchmarks/pretrained.py vision --data FOLDER --blocks 10   # the same before the proxy

All of it lies under ``runs/pretrained`` (``--out``). Seeded. FOLDER of ``gsm8k`` is
``grade_school_math/data`` of openai/grade-school-math, that of ``vision`` the human-noise records. A GPU is used where
there is one. ``text`` needs ``pip install gguf``. ``configs/benchmark/gsm8k.yaml``,
``gsm8k_scores.yaml``, ``gsm8k_signal.yaml`` and ``photographs.yaml`` compare selectors on what this makes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from _gsm8k import Gsm8k
from _human_noise import WRONG, read, true_labels
from _pretrained_models import evenly, keep_blocks, smollm2, vision_language
from _real_pools import Cut, Record
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

import ostlight
from ostlight.config.digitmath import CLEAN

TEXT, PEOPLE, PROXY, VISION = "smollm2", "smollm2-people", "smollm2-{blocks}", "vlm-{blocks}"
BLOCKS = 30
"""Of SmolLM2-135M."""
WHOLE, SHALLOW = "whole model", "ten blocks"
"""Variants of ``gsm8k_scores.yaml``."""
TABLE = Path("benchmarks/results/gsm8k_scores.parquet")


@dataclass(frozen=True)
class Healing:
    """How a copy with fewer blocks is trained to predict plain text again: AdamW, linear decay to 0.

    Attributes:
        lr: chosen on the loss of the anchors' text, which the training does not see.
        tokens: that a text is cut to.
    """

    steps: int = 300
    batch_size: int = 8
    lr: float = 5e-4
    tokens: int = 256
    bf16: bool = False
    """Passes in bf16, weights and optimizer in fp32."""


@dataclass(frozen=True)
class Photographs:
    """Sizes of the parts of the photographs' pool. The captions are of images that no other part has."""

    pool: int = 1_200
    captions: int = 1_600
    dev: int = 300
    test: int = 500
    seed: int = 0


def text(options: argparse.Namespace) -> None:
    model, tokenizer = smollm2(options.packages)
    _save(options.out / TEXT, model, tokenizer)


def gsm8k(options: argparse.Namespace) -> None:
    Gsm8k().write(options.data, options.out / "gsm8k")


def people(options: argparse.Namespace) -> None:
    """Writes the model after two passes over people's solutions, to questions that neither pool nor anchors have."""
    _train(options, PEOPLE, options.out / "gsm8k" / "people.jsonl", options.out / TEXT, {"batch_size": 8, "lr": 5e-5})


def proxy(options: argparse.Namespace) -> None:
    """Writes the copy with ``--blocks`` blocks, and prints the loss of the anchors' text on the way."""
    whole = AutoModelForCausalLM.from_pretrained(options.out / TEXT)
    tokenizer = AutoTokenizer.from_pretrained(options.out / TEXT)
    kept = evenly(whole.config.num_hidden_layers, options.blocks)
    model = keep_blocks(whole, kept).to(options.device)
    lines = (options.out / "gsm8k" / "text.jsonl").read_text().splitlines()
    unseen = [_as_text(json.loads(line)) for line in (options.out / "gsm8k" / "anchors.jsonl").open()]
    healing = replace(Healing(), steps=options.steps, lr=options.lr, bf16=options.bf16)
    before = _text_loss(whole.to(options.device), tokenizer, unseen, healing)
    print(f"loss of the anchors' text: whole model {before:.3f}, {options.blocks} blocks as they are ", end="")
    print(f"{_text_loss(model, tokenizer, unseen, healing):.3f}", flush=True)
    heal(model, tokenizer, [json.loads(line)["text"] for line in lines], unseen, healing)
    _save(options.out / PROXY.format(blocks=options.blocks), model.cpu(), tokenizer)


def heal(model: Any, tokenizer: Any, texts: list[str], unseen: list[str], healing: Healing) -> None:
    """Trains on next tokens of plain text."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=healing.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, healing.steps)
    model.train()
    began = time.perf_counter()
    for step, batch in zip(range(1, healing.steps + 1), _batches(tokenizer, texts, healing), strict=False):
        optimizer.zero_grad()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=healing.bf16):
            loss = _mean_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            held_out = _text_loss(model, tokenizer, unseen, healing)
            print(f"step {step}: {held_out:.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    model.eval()


def vision(options: argparse.Namespace) -> None:
    """Writes the photographs' parts, then the vision-language model, whose projector alone is trained on captions."""
    folder, sizes = options.out / "photographs", Photographs()
    cut_photographs(options.data, sizes).write(folder)
    text = options.out / (TEXT if options.blocks == BLOCKS else PROXY.format(blocks=options.blocks))
    model, processor = vision_language(text, options.packages)
    name = VISION.format(blocks=options.blocks)
    _save(options.out / f"{name}-untrained", model, processor)
    start, training = options.out / f"{name}-untrained", {"batch_size": 16, "lr": 1e-3}
    _train(options, name, folder / "captions.parquet", start, training, freeze=["vision", "language"])


def _train(
    options: argparse.Namespace, name: str, data: Path, model: Path, training: dict[str, Any], **target: Any
) -> None:
    """Fine-tunes ``model`` on all of ``data``; the result is ``name`` below ``--out``."""
    config = {
        "name": f"{name}-training",
        "folder": str(options.out),
        "pool": {"path": str(data)},
        "selector": {"name": "full"},
        "target": {
            "path": str(model),
            "precision": "bf16-mixed" if options.bf16 else "32-true",
            "training": {"epochs": options.epochs, "warmup": 0.1, **training},
            **target,
        },
    }
    ostlight.select(config)
    trained = ostlight.train(config)
    (options.out / name).unlink(missing_ok=True)
    (options.out / name).symlink_to(trained.resolve())


def cut_photographs(data: Path, sizes: Photographs) -> Cut:
    """A pool with one person's answers as they are, trusted parts, and captions of other images' true labels."""
    rng, truth = np.random.default_rng(sizes.seed), true_labels(data)
    pool, anchors, dev, test = (read(data / f"{part}.parquet") for part in ("pool", "anchors", "dev", "test"))
    order = rng.permutation(len(pool))
    chosen = [pool[k] for k in order[: sizes.pool]]
    others = [pool[k] for k in order[sizes.pool : sizes.pool + sizes.captions]]
    captions = [
        replace(r, question="Describe this picture.", answer=f"A photo of {_article(truth[r.id])}.", tags={})
        for r in others
    ]

    def some(rows: list[Record], size: int) -> list[Record]:
        return [rows[k] for k in rng.permutation(len(rows))[:size]]

    parts = {"pool": chosen, "anchors": anchors, "dev": some(dev, sizes.dev), "test": some(test, sizes.test)}
    return Cut(parts | {"captions": captions}, [CLEAN if r.answer == truth[r.id] else WRONG for r in chosen])


def scores(options: argparse.Namespace) -> None:
    """Adds the scores of a finished benchmark to a table with a row for each record and a column for each selector."""
    table = pq.read_table(options.table) if options.table.exists() else None
    for row in map(json.loads, (options.run / "score_index.jsonl").read_text().splitlines()):
        read = ostlight.Scores.read(options.run / row["scores"] / "scores")
        found = pa.table({"id": read.ids, f"{row['variant']}: {row['selector']}": read.score})
        table = found if table is None else table.join(found, "id", join_type="full outer")
    pq.write_table(table.sort_by("id"), options.table)
    print(f"written: {options.table}, {table.num_rows} records, {table.num_columns - 1} columns")


def agreement(options: argparse.Namespace) -> None:
    """Prints how far the scores of the shallow proxy agree with those of the whole model, selector by selector."""
    columns = pq.read_table(options.table).to_pydict()
    for name in (name.removeprefix(f"{WHOLE}: ") for name in columns if name.startswith(f"{WHOLE}: ")):
        if (other := f"{SHALLOW}: {name}") in columns:
            one, two = (np.array(columns[column], dtype=float) for column in (f"{WHOLE}: {name}", other))
            both = ~np.isnan(one) & ~np.isnan(two)
            rank = stats.spearmanr(one[both], two[both]).statistic
            sign = np.mean((one[both] > 0) == (two[both] > 0))
            print(f"{name}: Spearman {rank:.2f}, same sign {sign:.2f}, {both.sum()} records")


def _batches(tokenizer: Any, texts: list[str], healing: Healing) -> Iterator[dict[str, torch.Tensor]]:
    rng, queue = np.random.default_rng(0), np.empty(0, dtype=int)
    while True:
        while len(queue) < healing.batch_size:
            queue = np.concatenate([queue, rng.permutation(len(texts))])
        yield _encode(tokenizer, [texts[k] for k in queue[: healing.batch_size]], healing.tokens)
        queue = queue[healing.batch_size :]


def _encode(tokenizer: Any, texts: list[str], tokens: int) -> dict[str, torch.Tensor]:
    return dict(tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=tokens))


def _mean_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    loss: torch.Tensor = model(**batch, labels=labels).loss
    return loss


@torch.no_grad()
def _text_loss(model: Any, tokenizer: Any, texts: list[str], healing: Healing) -> float:
    groups = [texts[k : k + 8] for k in range(0, len(texts), 8)]
    return float(np.mean([_mean_loss(model, _encode(tokenizer, group, healing.tokens)).item() for group in groups]))


def _as_text(record: dict[str, str]) -> str:
    return f"{record['question']}\n{record['answer']}"


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _save(folder: Path, model: Any, processor: Any) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    print(f"written: {folder}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters")


COMMANDS = {function.__name__: function for function in (text, gsm8k, people, proxy, vision, scores, agreement)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--data", type=Path, help="folder of the original records")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrained"))
    parser.add_argument("--packages", type=Path, help="where weights are downloaded to; default: OUT/packages")
    parser.add_argument("--blocks", type=int, default=10, help="of the shallow proxy")
    parser.add_argument("--steps", type=int, default=Healing.steps, help="of its training on plain text")
    parser.add_argument("--lr", type=float, default=Healing.lr)
    parser.add_argument(
        "--bf16", action="store_true", help="train in bf16-mixed: faster with AMX, AVX-512 bf16 or CUDA"
    )
    parser.add_argument("--epochs", type=float, default=2.0, help="over the captions, or people's solutions")
    parser.add_argument("--run", type=Path, help="folder of a finished benchmark")
    parser.add_argument("--table", type=Path, default=TABLE, help="of scores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(argv)
    options.packages = options.packages or options.out / "packages"
    if options.command in ("gsm8k", "vision") and options.data is None:
        parser.error(f"{options.command} needs --data FOLDER")
    if options.command == "scores" and options.run is None:
        parser.error("scores needs --run FOLDER")
    options.out.mkdir(parents=True, exist_ok=True)
    ostlight.configure_logging()
    COMMANDS[options.command](options)


if __name__ == "__main__":
    main()
