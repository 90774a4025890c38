"""Active learning: which unlabelled samples to have annotated, by the utility of the answers the proxy expects."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from ostlight.data.sample import Sample, Turn
from ostlight.errors import BadRecord, SelectorError
from ostlight.models.batch import Batch, by_token_budget
from ostlight.models.encode import Encoded
from ostlight.models.losses import IGNORED
from ostlight.models.module import MultimodalModel
from ostlight.pipeline.fingerprint import of_class
from ostlight.selection.context import ScoringContext
from ostlight.selection.selector import Selector
from ostlight_selectors.ost import OneStepTrain


class Active(Selector):
    """Unlabelled samples whose annotation promises most: One-Step-Train's utility, expected over the proxy's answers.

    The proxy writes its ``answers`` most probable answers (beam search, so they depend on the sample alone), each is
    scored as if it were the label, and the utilities are averaged by the answers' probabilities. Over all answers a
    model can give, the mean of a first-order utility is about zero (a model expects no news from itself), so what an
    annotation is worth lies in the answers that help: where an annotated sample may still be left out of the training,
    only those count. A sample that has an answer already is scored on it.
    """

    uses_proxy: ClassVar[bool] = True
    needs_answers: ClassVar[bool] = False
    renamed_options: ClassVar[Mapping[str, str]] = {"scope": "parameters", "eta": "step_size"}

    @dataclass
    class Options:
        """Attributes:
        estimator, parameters, step_size, rank, probes: as for ``ost``.
        answers: candidates the proxy writes for each sample.
        max_new_tokens: longest candidate.
        leave_out_harmful: a label that turns out to hurt is left out of the training, so it counts 0.
        hide_answers: no answer of the pool is looked at, to try on an annotated pool what would have been annotated.
        """

        estimator: str = "projected"
        parameters: str = "blocks"
        step_size: float | None = None
        rank: int | None = None
        probes: int | None = None
        answers: int = 4
        max_new_tokens: int = 64
        leave_out_harmful: bool = True
        hide_answers: bool = False

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        for name in ("answers", "max_new_tokens"):
            if getattr(self.options, name) < 1:
                raise SelectorError(f"selector.options.{name} must be at least 1; got {getattr(self.options, name)}")
        names = ("estimator", "parameters", "step_size", "rank", "probes")
        shared = {name: getattr(self.options, name) for name in names}
        self.step = OneStepTrain(OneStepTrain.Options(**shared))

    def fingerprints(self) -> dict[str, str]:
        return {"code of ost": of_class(OneStepTrain)}

    def setup(self, context: ScoringContext) -> None:
        proxy = context.proxy
        self.model, self.tokens_per_batch = proxy.model, proxy.tokens_per_batch
        answered = dataclasses.replace(proxy, examples=lambda count: self._likeliest(proxy.examples(count)))
        self.step.setup(dataclasses.replace(context, _proxy=answered))

    def score(self, batch: Batch) -> dict[str, Any]:
        labelled = [(i, c) for i, found in enumerate(self._candidates(batch)) for c in found]
        nothing = BadRecord("no_candidate", "the proxy gives no answer that can be scored")
        refused: list[BadRecord | None] = [nothing] * len(batch)
        encoded, owners = [], []
        candidates: list[Sample] = []
        for i, candidate in labelled:
            try:
                encoded.append(self.model.encoder.encode(candidate))
                candidates.append(candidate)
                owners.append(i)
            except BadRecord as error:
                refused[i] = error
        utilities, logs = self._utilities(candidates, encoded)
        columns: dict[str, list[Any]] = {name: [] for name in ("score", "expected_utility", "spread", "answers")}
        for i in range(len(batch)):
            mine = [k for k, owner in enumerate(owners) if owner == i and np.isfinite(utilities[k] + logs[k])]
            if not mine:
                for values in columns.values():
                    values.append(float("nan"))
                columns["answers"][-1] = []
                continue
            refused[i] = None
            u, weights = utilities[mine], np.exp(logs[mine] - np.logaddexp.reduce(logs[mine]))
            mean = float(weights @ u)
            columns["score"].append(float(weights @ np.maximum(u, 0)) if self.options.leave_out_harmful else mean)
            columns["expected_utility"].append(mean)
            columns["spread"].append(float(np.sqrt(weights @ (u - mean) ** 2)))
            columns["answers"].append([candidates[k].answer for k in mine])
        return columns | ({"failure": refused} if any(refused) else {})

    def _utilities(self, samples: Sequence[Sample], encoded: Sequence[Encoded]) -> tuple[np.ndarray, np.ndarray]:
        """``[candidates]`` utility of each, and the log-probability the proxy gives it."""
        utilities, logs = np.full(len(samples), np.nan), np.full(len(samples), np.nan)
        for group in by_token_budget([len(e) for e in encoded], self.tokens_per_batch):
            batch = self.model.collator.batch([samples[k] for k in group], [encoded[k] for k in group])
            columns = self.step.score(batch.to(self.model.device))
            tokens = torch.stack([(encoded[k].labels != IGNORED).sum() for k in group]).double()
            utilities[group] = np.asarray(torch.as_tensor(columns["score"]).cpu(), dtype=np.float64)
            logs[group] = -(torch.as_tensor(columns["loss"]).cpu().double() * tokens).numpy()
        return utilities, logs

    def _likeliest(self, prompts: Iterator[Batch]) -> Iterator[Batch]:
        """Single samples with the proxy's first answer as their label."""
        for prompt in prompts:
            for candidate in self._candidates(prompt)[0][:1]:
                try:
                    encoded = self.model.encoder.encode(candidate)
                except BadRecord:
                    continue
                yield self.model.collator.batch([candidate], [encoded]).to(self.model.device)

    def _candidates(self, batch: Batch) -> list[list[Sample]]:
        """The samples with each answer that is to be tried; their own alone where they have one."""
        samples = [_asked(sample) for sample in batch.samples] if self.options.hide_answers else batch.samples
        bare = [i for i, sample in enumerate(samples) if not any(t.trained for t in sample.turns)]
        texts = dict(zip(bare, _answers(self.model, batch, bare, self.options), strict=True))
        return [
            [_answered(sample, text) for text in texts[i]] if i in texts else [sample]
            for i, sample in enumerate(samples)
        ]


def _answers(model: MultimodalModel, batch: Batch, rows: Sequence[int], options: Any) -> list[list[str]]:
    """The most probable answers to each prompt, without empty ones and repetitions."""
    if not rows:
        return []
    # Generation goes on at the right end, so prompts are padded on the left; the positions follow from the mask.
    collator = replace(model.collator, side="left", positions=False)
    prompts = collator.batch([batch.samples[i] for i in rows], [batch.encoded[i] for i in rows]).to(model.device)
    inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in prompts.inputs.items()}
    count = options.answers
    with torch.no_grad():
        out = model.model.generate(  # type: ignore[operator]
            **inputs,
            max_new_tokens=options.max_new_tokens,
            do_sample=False,
            num_beams=count,
            num_return_sequences=count,
        )
    texts = model.encoder.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [list(dict.fromkeys(t for t in texts[k * count : (k + 1) * count] if t.strip())) for k in range(len(rows))]


def _asked(sample: Sample) -> Sample:
    """Up to the last answer, the earlier ones as context."""
    return replace(sample, turns=tuple(replace(turn, trained=False) for turn in sample.turns[: sample.last_reply]))


def _answered(sample: Sample, text: str) -> Sample:
    return replace(sample, turns=(*sample.turns, Turn("assistant", text, trained=True)))
