"""Trains the rivals' models for DigitMath: a judge that says yes or no, and a scorer that says 1 to 6.

Both learn from the digit images of pretraining, which occur nowhere else, with answers made wrong in ways that know
nothing of the pool's defects: a digit misread at random, a step on digits that were not read, a random result,
another picture's answer, a chain cut short, empty words.

    python benchmarks/train_digitmath_base.py --size large --out runs/bases           # the judge starts from it
    python benchmarks/train_digitmath_scorers.py judge --base runs/bases/large --out runs/bases/judge
    python benchmarks/train_digitmath_scorers.py deita --out ostlight/digitmath/checkpoints/scorer

The judge is of the target's family and twice its size; it sees picture, question and answer in the words of the rubric
``benchmarks/digitmath_judge.yaml``. The scorer reads words alone, as the published DEITA scorers do, in their prompts:
complexity is the task's place in an order by steps, quality what became of the answer.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from _digitmath_tokenizer import MAX_TOKENS, WORDS, build_tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from train_digitmath_base import Collator, Example, jitter, rate_at, save
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from ostlight.config.digitmath import TASKS
from ostlight.data.sample import IMAGE_PLACEHOLDER, Sample, Turn
from ostlight.digitmath.defects import Record
from ostlight.digitmath.digits import GRID, labels_of, render, split
from ostlight.digitmath.tasks import ask, solve
from ostlight.models.losses import IGNORED
from ostlight_selectors.deita.prompts import COMPLEXITY, QUALITY, QuestionAnswer
from ostlight_selectors.llm_judge.rubric import Rubric

STEPS_OF_TASK = {"parity": 1, "read": 2, "maximum": 3, "sum": 4, "difference": 4, "sort": 5, "two_step": 6}
QUALITY_OF = {"right": 6, "result": 4, "step": 3, "misread": 3, "other": 2, "cut": 2, "empty": 1}
JUDGED = ("misread", "misread", "misread", "other", "step", "step", "result", "result", "cut", "empty")
"""What becomes of the answers the judge learns from: mostly what needs looking and reckoning to find."""
MADE_WITH = {
    "judge": {"steps": 500, "batch_size": 32, "learning_rate": 7e-4},
    "deita": {"steps": 600, "batch_size": 64, "learning_rate": 1e-3},
}
JUDGE_RUBRIC = Path(__file__).parent / "digitmath_judge.yaml"
CHECKED = 700
"""Examples the finished model is tested on, of digit images it has not seen (the development split)."""


def answered(task: str, digits: list[int], how: str, rng: random.Random) -> str:
    """The chain of thought for a question about ``digits``, right or made wrong in one way."""
    right = solve(task, digits)
    if how == "right":
        return right
    if how == "misread":
        wrong = list(digits)
        place = rng.randrange(len(wrong))
        wrong[place] = rng.choice([d for d in range(10) if d != wrong[place]])
        return solve(task, wrong)
    if how == "other":
        return solve(task, _others(task, digits, rng))
    words = right.split()
    read = 1 + len(digits)
    if how == "step" and task != "read":
        return " ".join([*words[:read], *solve(task, _others(task, digits, rng)).split()[read:]])
    if how == "cut":
        return " ".join(words[: rng.randint(1, words.index("answer"))])
    if how == "empty":
        return " ".join(rng.choices(WORDS.split(), k=rng.randint(4, 16))) + "."
    # The chain as it should be, and another result.
    given = words[words.index("answer") + 1 :]
    other = solve(task, _others(task, digits, rng)).split()
    return " ".join([*words[: -len(given)], *other[other.index("answer") + 1 :]])


def _others(task: str, digits: list[int], rng: random.Random) -> list[int]:
    """Random digits with another result."""
    result = solve(task, digits).split("answer")[1]
    while True:
        found = [rng.randrange(10) for _ in digits]
        if solve(task, found).split("answer")[1] != result:
            return found


def one(part: str, rng: random.Random, share_right: float, wrong: tuple[str, ...]) -> tuple[Record, str, str]:
    """A question about digit images of ``part``, an answer, and how the answer came about."""
    cells = tuple(rng.sample(split()[part], GRID * GRID))
    question = ask(rng.choice(TASKS), rng)
    digits = [labels_of(cells)[cell] for cell in question.cells]
    how = "right" if rng.random() < share_right else rng.choice(wrong)
    return Record(cells, question, ""), answered(question.task, digits, how, rng), how


class JudgeBatches:
    """Endless batches of what the judge is asked, and the word it should say.

    The verdict alone is too weak a signal to learn to compare from. So the judge first learns to foretell every word
    of a right answer where it stands in the judge's prompt (solve first); then, by turns, to foretell and to say of
    every word whether it is right (token-level verification with the language model kept beside it, Cobbe et al. 2021,
    arXiv:2110.14168, section 4.2). A digit read is right by itself; other words up to the first wrong one.
    """

    def __init__(self, seed: int) -> None:
        self.rng, self.noise = random.Random(f"judge {seed}"), np.random.default_rng(seed)
        self.rubric, self.collate = Rubric.read(str(JUDGE_RUBRIC)), Collator()
        self.yes, self.no = self.collate.tokenizer.convert_tokens_to_ids(["yes", "no"])

    def asked(self, part: str) -> tuple[Example, list[int], list[bool]]:
        """The judge's prompt with the verdict, the right answer's tokens, and which of the given answer's are right."""
        record, answer, how = one(part, self.rng, share_right=0.4, wrong=JUDGED)
        turns = (Turn("user", f"{IMAGE_PLACEHOLDER}\n{record.question.text}"), Turn("assistant", answer, trained=True))
        (said,) = self.rubric.conversation(Sample("", turns), one_word=True).turns
        pixels = render(record.cells)
        if part == "pretraining":
            pixels = jitter(pixels, self.noise)
        verdict = "yes" if how == "right" else "no"
        example = Example(pixels, said.text.replace(IMAGE_PLACEHOLDER, "", 1).strip(), verdict, how)
        given, right = self._ids(answer), self._ids(solve(record.question.task, record.asked_digits))
        same = [a == b for a, b in zip(given, right, strict=False)] + [False] * max(0, len(given) - len(right))
        read = range(1, 1 + len(record.asked_digits))
        return example, right, [same[k] if k in read else all(same[: k + 1]) for k in range(len(same))]

    def __call__(self, size: int, solving: int) -> Iterator[dict[str, Tensor]]:
        """Batches of ``size``, the first ``solving`` of them about foretelling alone."""
        for step in itertools.count():
            asked = [self.asked("pretraining") for _ in range(size)]
            batch = self.collate([example for example, _, _ in asked])
            labels = batch["labels"]
            labels[:, -1] = IGNORED  # the verdict alone, not the end behind it
            for row, (example, right, holds) in enumerate(asked):
                # A label stands one place behind the token whose logits it judges; the last two are verdict and end.
                stop = labels.shape[1] - 2 - len(self._ids(example.question.rpartition("\n")[2]))
                start = stop - len(holds)
                if step < solving or self.rng.random() < 0.5:
                    for k, token in enumerate(right[: len(holds)]):
                        if all(holds[:k]) or holds[k]:
                            labels[row, start - 1 + k] = token
                else:
                    labels[row, start:stop] = torch.tensor([self.yes if held else self.no for held in holds])
            yield batch

    def _ids(self, text: str) -> list[int]:
        return list(self.collate.tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.no_grad()
    def check(self, model: torch.nn.Module) -> dict[str, float]:
        """Share judged rightly, by what became of the answer."""
        examples = [self.asked("dev")[0] for _ in range(CHECKED)]
        found: dict[str, list[bool]] = {}
        for start in range(0, CHECKED, 100):
            chunk = examples[start : start + 100]
            batch = self.collate(chunk, prompts_only=True)
            batch.pop("labels")
            logits = model(**batch, use_cache=False).logits[:, -1]
            for example, says_yes in zip(chunk, (logits[:, self.yes] > logits[:, self.no]).tolist(), strict=True):
                found.setdefault(example.task, []).append(says_yes == (example.answer == "yes"))
        return _shares(found)


class ScorerBatches:
    """Endless batches of the two DEITA prompts, the score behind each."""

    def __init__(self, seed: int) -> None:
        self.rng, self.tokenizer = random.Random(f"scorer {seed}"), build_tokenizer()

    def asked(self, part: str) -> tuple[str, int, str]:
        record, answer, how = one(part, self.rng, share_right=0.4, wrong=tuple(QUALITY_OF)[1:])
        pair = QuestionAnswer(record.question.text, answer)
        if self.rng.random() < 0.25:
            return COMPLEXITY.render(pair), STEPS_OF_TASK[record.question.task], "complexity"
        return QUALITY.render(pair), QUALITY_OF[how], f"quality, {how}"

    def _batch(self, asked: list[tuple[str, int, str]]) -> dict[str, Tensor]:
        rows = [self.tokenizer(f"{text}{score}")["input_ids"] for text, score, _ in asked]
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for k, row in enumerate(rows):
            ids[k, length - len(row) :] = torch.tensor(row)
            mask[k, length - len(row) :] = 1
            labels[k, -1] = row[-1]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def __call__(self, size: int) -> Iterator[dict[str, Tensor]]:
        while True:
            yield self._batch([self.asked("pretraining") for _ in range(size)])

    @torch.no_grad()
    def check(self, model: torch.nn.Module) -> dict[str, float]:
        """Share of scores that are the likeliest, by what became of the answer."""
        found: dict[str, list[bool]] = {}
        for _ in range(CHECKED // 100):
            asked = [self.asked("dev") for _ in range(100)]
            batch = self._batch(asked)
            labels = batch.pop("labels")
            best = model(**batch, use_cache=False).logits[:, -2].argmax(-1)
            for (_, _, name), right in zip(asked, (best == labels[:, -1]).tolist(), strict=True):
                found.setdefault(name, []).append(right)
        return _shares(found)


def _shares(found: dict[str, list[bool]]) -> dict[str, float]:
    whole = [x for values in found.values() for x in values]
    return {"all": round(sum(whole) / len(whole), 3)} | {k: round(sum(v) / len(v), 3) for k, v in sorted(found.items())}


def text_model(tokenizer) -> LlamaForCausalLM:
    """A small Llama without eyes."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=MAX_TOKENS,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def train(
    model: torch.nn.Module,
    batches: Iterator[dict[str, Tensor]],
    steps: int,
    peak: float,
    tell: Callable[[int, float, float], None],
) -> None:
    """AdamW on the cross-entropy of the one word that is asked for."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.01)
    seen: list[float] = []
    spread: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, peak)
        batch = next(batches)
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits
        # The word asked for is the last that has a label; others, where there are any, count as much in all.
        ends = labels.shape[1] - 1 - (labels != IGNORED).flip(1).int().argmax(1)
        rows = torch.arange(len(labels))
        loss = cross_entropy(logits[rows, ends - 1], labels[rows, ends])
        labels[rows, ends] = IGNORED
        beside = torch.zeros(())
        if bool((labels != IGNORED).any()):
            beside = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        (loss + beside).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen.append(float(loss.detach()))
        spread.append(float(beside.detach()))
        if (step + 1) % 50 == 0:
            tell(step + 1, sum(seen[-50:]) / 50, sum(spread[-50:]) / 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("judge", "deita"))
    parser.add_argument("--base", type=Path, default=None, help="a base checkpoint, for the judge")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--learning-rate", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.what == "judge" and options.base is None:
        parser.error("the judge starts from a base checkpoint: name it with --base")
    for name, value in MADE_WITH[options.what].items():
        if getattr(options, name) is None:
            setattr(options, name, value)

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    judge = options.what == "judge"
    batches = JudgeBatches(options.seed) if judge else ScorerBatches(options.seed)
    if judge:
        model = AutoModelForImageTextToText.from_pretrained(options.base, dtype=torch.float32)
    else:
        model = text_model(batches.tokenizer)
    began, curve = time.perf_counter(), {}

    def tell(step: int, loss: float, beside: float) -> None:
        curve[step] = round(loss, 4)
        seconds = time.perf_counter() - began
        print(f"step {step}: loss {loss:.4f} (word by word {beside:.4f}), {seconds:.0f} s", flush=True)

    model.train(False)
    endless = batches(options.batch_size, options.steps // 5) if judge else batches(options.batch_size)
    train(model, endless, options.steps, options.learning_rate, tell)
    entry = {
        "what": options.what,
        "parameters": sum(p.numel() for p in model.parameters()),
        "command": f"python benchmarks/train_digitmath_scorers.py {options.what}"
        + (f" --base {options.base}" if judge else "")
        + f" --out {options.out} --steps {options.steps} --batch-size {options.batch_size} "
        + f"--learning-rate {options.learning_rate} --seed {options.seed}",
        "samples": options.steps * options.batch_size,
        "seconds": round(time.perf_counter() - began, 1),
        "threads": options.threads,
        "loss_by_step": curve,
        "right_on_dev_digits": batches.check(model),
    }
    save(model, options.out, "llava" if judge else "text")
    (options.out / "training.json").write_text(json.dumps(entry, indent=2) + "\n")
    print(json.dumps(entry, indent=2))


if __name__ == "__main__":
    main()
