"""Trains DigitMath's base checkpoints: what a model knows before it sees the pool.

Images teach reading (rows, columns, single cells) and parity, on digit images that occur nowhere else; text alone
teaches the number facts. What the pool adds is to put the two together. Repeatable from the seed:

    python benchmarks/train_digitmath_base.py --size proxy
    python benchmarks/train_digitmath_base.py --size target
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from _digitmath_models import SIZES, build_model, build_processor
from _digitmath_tokenizer import ASSISTANT, BOS, EOS, IDEFICS3_SPECIALS, USER, build_tokenizer
from torch import Tensor

from ostlight.config.digitmath import TASKS
from ostlight.data.sample import IMAGE_PLACEHOLDER
from ostlight.digitmath import final_answer
from ostlight.digitmath.build import clean_records
from ostlight.digitmath.digits import GRID, IMAGE_PIXELS, labels_of, render, split
from ostlight.digitmath.model import CHECKPOINTS
from ostlight.digitmath.tasks import PLACES, ask, solve
from ostlight.models.losses import IGNORED, per_sample_losses

MIX = {"read": 0.15, "reading": 0.35, "parity": 0.10, "asked_fact": 0.10, "fact": 0.30}
FILLERS = "read look see tell what which is are the of in and with how it from to or that whether then we"
MAX_NEW_TOKENS = 30


@dataclass(frozen=True, slots=True)
class Example:
    """Grey levels ``uint8 [16, 16]`` (``None`` for text alone), the human's words (may be empty), and the answer."""

    pixels: np.ndarray | None
    question: str
    answer: str
    task: str = ""


def examples_of(part: str, size: int, seed: int) -> list[Example]:
    """Clean examples of all tasks on the digit images of ``part``."""
    return [
        Example(render(record.cells), record.question.text, record.answer, record.question.task)
        for record in clean_records(part, size, seed)
    ]


def lesson(rng: random.Random, noise: np.random.Generator) -> Example:
    """One random pretraining example."""
    kind = rng.choices(list(MIX), list(MIX.values()))[0]
    if kind in ("fact", "asked_fact"):
        return number_fact(rng, asked=kind == "asked_fact")
    cells = tuple(rng.sample(split()["pretraining"], GRID * GRID))
    digits, pixels = labels_of(cells), jitter(render(cells), noise)
    if kind == "reading":
        place = rng.choice(list(PLACES))
        return Example(pixels, carried(place, rng), solve("read", [digits[cell] for cell in PLACES[place]]))
    question = ask(kind, rng)
    return Example(pixels, question.text, solve(kind, [digits[cell] for cell in question.cells]))


def carried(place: str, rng: random.Random) -> str:
    """A place among a few words that mean nothing, so that a reader goes by the place and not by the sentence."""
    before, after = ([rng.choice(FILLERS.split()) for _ in range(rng.randrange(7))] for _ in range(2))
    return " ".join([*before, place, *after])


def number_fact(rng: random.Random, asked: bool) -> Example:
    """A chain of thought about random numbers, in answer to a question in words or as running text."""
    task = rng.choice(("sum", "difference", "two_step", "maximum", "sort", "parity"))
    digits = [rng.randrange(10) for _ in range({"maximum": 4, "sort": 4, "two_step": 3, "parity": 1}.get(task, 2))]
    spaced = " ".join(map(str, digits))
    question = {
        "sum": "what is {0} plus {1}",
        "difference": "what is the difference between {0} and {1}",
        "two_step": "how far is {2} from {0} plus {1}",
        "maximum": f"which is the largest of {spaced}",
        "sort": f"sort {spaced}",
        "parity": "is {0} even or odd",
    }[task]
    return Example(None, question.format(*digits) if asked else "", solve(task, digits))


def jitter(pixels: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """The image a little darker or lighter, with noise, so that a reader does not learn the images by heart."""
    grey = pixels * noise.uniform(0.75, 1.0) + noise.normal(0.0, 10.0, pixels.shape)
    return grey.clip(0, 255).astype(np.uint8)


class Collator:
    """Batches examples as the chat template and the processor of ``family`` would, only faster."""

    def __init__(self, family: str = "llava") -> None:
        self.idefics3 = family == "idefics3"
        self.tokenizer = build_tokenizer(IDEFICS3_SPECIALS if self.idefics3 else ())
        frame, _, scene = IDEFICS3_SPECIALS
        tokens = IMAGE_PLACEHOLDER * GRID * GRID
        self.image_text = f"{frame}{scene}{tokens}{frame}" if self.idefics3 else tokens

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"])

    def __call__(self, examples: Sequence[Example], prompts_only: bool = False) -> dict[str, Tensor]:
        marks = [self.image_text if example.pixels is not None else "" for example in examples]
        prompts = self._ids(
            [
                f"{BOS}{USER}{mark}{e.question}{ASSISTANT}" if e.question else f"{BOS}{ASSISTANT}"
                for mark, e in zip(marks, examples, strict=True)
            ]
        )
        answers = [[] for _ in examples] if prompts_only else self._ids([f"{e.answer}{EOS}" for e in examples])
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.full((len(examples), length), self.tokenizer.pad_token_id)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            start = length - len(prompt) - len(answer)
            ids[row, start:] = torch.tensor(prompt + answer)
            labels[row, start + len(prompt) :] = torch.tensor(answer, dtype=torch.long)
            mask[row, start:] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if self.idefics3:  # a row for every example; an all-zero image counts as none
            batch["pixel_values"] = torch.stack([_unit(e.pixels) for e in examples])[:, None]
        elif any(e.pixels is not None for e in examples):
            batch["pixel_values"] = torch.stack([_unit(e.pixels) for e in examples if e.pixels is not None])
        return batch


def _unit(pixels: np.ndarray | None) -> Tensor:
    """``[3, 16, 16]`` from -1 to 1; zeros without an image."""
    if pixels is None:
        return torch.zeros(3, IMAGE_PIXELS, IMAGE_PIXELS)
    return (torch.from_numpy(pixels).float() / 127.5 - 1.0).expand(3, -1, -1)


def rate_at(step: int, steps: int, peak: float, warmup: int = 20) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def fit(model: torch.nn.Module, batches: Iterator[dict[str, Tensor]], steps: int, peak: float) -> list[float]:
    """AdamW on the mean of the per-sample losses; the loss of every step."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.01)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, peak)
        batch = next(batches)
        labels = batch.pop("labels")
        loss = per_sample_losses(model(**batch, use_cache=False).logits, labels).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def accuracy(
    model: torch.nn.Module, examples: Sequence[Example], batch_size: int = 350, family: str = "llava"
) -> dict[str, float]:
    """Share of right final answers by greedy decoding, for each task and as ``mean`` over the tasks."""
    model.eval()
    collate, right = Collator(family), {task: [] for task in TASKS}
    for start in range(0, len(examples), batch_size):
        chunk = examples[start : start + batch_size]
        batch = collate(chunk, prompts_only=True)
        batch.pop("labels")
        out = model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, max_length=None)
        said = collate.tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for example, text in zip(chunk, said, strict=True):
            right[example.task].append(final_answer(text) == final_answer(example.answer))
    found = {task: sum(hits) / len(hits) for task, hits in right.items() if hits}
    return found | {"mean": sum(found.values()) / len(found)}


def lessons(seed: int, batch_size: int, family: str = "llava") -> Iterator[dict[str, Tensor]]:
    """Endless batches of pretraining examples."""
    rng, noise, collate = random.Random(f"lessons {seed}"), np.random.default_rng(seed), Collator(family)
    while True:
        yield collate([lesson(rng, noise) for _ in range(batch_size)])


def save(model: torch.nn.Module, folder: Path, family: str = "llava") -> None:
    """Half-precision weights that load as float32: half the bytes, and no arithmetic in half precision by accident."""
    model.half().save_pretrained(folder)
    (build_tokenizer() if family == "text" else build_processor(family)).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"float16"', '"float32"'))
    for file in folder.iterdir():
        file.chmod(0o644)


def write_log(folder: Path) -> None:
    """``LOG.md`` beside the checkpoints, from the ``training.json`` of each."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*/training.json"))]
    entries = [entry for entry in found if "size" in entry]  # judges and scorers may lie beside the bases
    lines = ["# How the base checkpoints were made", "", "Written by `benchmarks/train_digitmath_base.py`.", ""]
    for entry in entries:
        lines += [
            f"## {entry['size']}: {entry['parameters']:,} parameters",
            "",
            f"    {entry['command']}",
            "",
            f"{entry['samples']:,} samples in {entry['seconds']:.0f} s on {entry['threads']} CPU thread(s), "
            f"{entry['when']}. Mean per-sample loss over the 50 steps before each: "
            + ", ".join(f"{step}: {loss}" for step, loss in entry["loss_by_step"].items())
            + " (number facts in running text begin with random digits, so it cannot reach 0).",
            "",
            "Share of right final answers on the development split before any fine-tuning: "
            + ", ".join(f"{task} {value}" for task, value in entry["dev_accuracy"].items())
            + ".",
            "",
            "Versions: " + ", ".join(f"{name} {number}" for name, number in entry["versions"].items()) + ".",
            "",
        ]
    (folder / "LOG.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), required=True)
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=CHECKPOINTS)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    family = SIZES[options.size].family
    model, batches = build_model(options.size), lessons(options.seed, options.batch_size, family)
    dev, began, losses = examples_of("dev", 350, 0), time.perf_counter(), []
    losses = fit(model, batches, options.steps, options.learning_rate)
    seconds = time.perf_counter() - began
    found = accuracy(model, dev, family=family)
    save(model, options.out / options.size, family)
    curve = {
        step: round(float(np.mean(losses[max(0, step - 50) : step])), 4) for step in range(250, len(losses) + 1, 250)
    }
    entry = {
        "size": options.size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "command": f"python benchmarks/train_digitmath_base.py --size {options.size} --steps {options.steps} "
        f"--batch-size {options.batch_size} --learning-rate {options.learning_rate} --seed {options.seed}",
        "samples": options.steps * options.batch_size,
        "seconds": round(seconds, 1),
        "threads": options.threads,
        "loss_by_step": curve,
        "dev_accuracy": {task: round(value, 3) for task, value in found.items()},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy", "scikit-learn")},
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (options.out / options.size / "training.json").write_text(json.dumps(entry, indent=2) + "\n")
    write_log(options.out)
    print(json.dumps(entry, indent=2))


if __name__ == "__main__":
    main()
