"""Active learning: which unlabelled samples to have annotated, by the utility of the answers the proxy expects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from ostlight.config.schema import Count, Positive
from ostlight.data.sample import Sample, Turn
from ostlight.errors import BadRecord
from ostlight.models.batch import Batch, by_token_budget
from ostlight.models.encoding.encoder import Encoded
from ostlight.models.generation import AnswerEnd
from ostlight.models.losses import IGNORED
from ostlight.models.module import MultimodalModel
from ostlight.pipeline.fingerprint import of_class
from ostlight.selection.context import ScoringContext
from ostlight.selection.planning import ProxyMemory
from ostlight.selection.selector import Selector
from ostlight_selectors.ost import OneStepTrain

SHARED_OPTIONS = ("estimator", "parameters", "step_size", "rank", "probes")
"""With ``ost``."""


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
    needs_anchors: ClassVar[bool] = True
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

        estimator: Literal["projected", "exact", "first_order", "second_order", "finite_difference"] = "projected"
        parameters: str = "blocks"
        step_size: Positive | None = None
        rank: Count | None = None
        probes: Count | None = None
        answers: Count = 4
        max_new_tokens: Count = 64
        leave_out_harmful: bool = True
        hide_answers: bool = False

    def _one_step_train(self) -> OneStepTrain:
        shared = {name: getattr(self.options, name) for name in SHARED_OPTIONS}
        return OneStepTrain(OneStepTrain.Options(**shared, selection="top"))

    def check_anchors(self, groups: Sequence[str]) -> None:
        self._one_step_train().check_anchors(groups)

    def fit_memory(self, proxy: ProxyMemory) -> None:
        step = self._one_step_train()
        step.fit_memory(proxy)
        for name in SHARED_OPTIONS:
            setattr(self.options, name, getattr(step.options, name))

    def fingerprints(self) -> dict[str, str]:
        return {"code of ost": of_class(OneStepTrain)}

    def setup(self, context: ScoringContext) -> None:
        proxy = context.proxy
        self.model, self.tokens_per_batch = proxy.model, proxy.tokens_per_batch
        self.step = self._one_step_train()
        labelled = replace(proxy, examples=lambda count: self._with_first_answer(proxy.examples(count)))
        self.step.setup(replace(context, _proxy=labelled))

    def teardown(self) -> None:
        self.step.teardown()

    def score(self, batch: Batch) -> dict[str, Any]:
        failures = [BadRecord("no_candidate", "the proxy gives no answer that can be scored")] * len(batch)
        encoded, rows = [], []
        candidates: list[Sample] = []
        for i, of_sample in enumerate(self._candidates(batch)):
            for candidate in of_sample:
                try:
                    encoded.append(self.model.encoder.encode(candidate))
                    candidates.append(candidate)
                    rows.append(i)
                except BadRecord as error:
                    failures[i] = error
        utilities, logs = self._utilities(candidates, encoded)
        results: list[dict[str, Any]] = []
        for i, failure in enumerate(failures):
            scored = [k for k, row in enumerate(rows) if row == i and np.isfinite(utilities[k] + logs[k])]
            if not scored:
                unknown = dict.fromkeys(("score", "expected_utility", "spread"), float("nan"))
                results.append({**unknown, "answers": [], "failure": failure})
                continue
            u, weights = utilities[scored], np.exp(logs[scored] - np.logaddexp.reduce(logs[scored]))
            mean = float(weights @ u)
            results.append(
                {
                    "score": float(weights @ np.maximum(u, 0)) if self.options.leave_out_harmful else mean,
                    "expected_utility": mean,
                    "spread": float(np.sqrt(weights @ (u - mean) ** 2)),
                    "answers": [candidates[k].answer for k in scored],
                    "failure": None,
                }
            )
        return {name: [row[name] for row in results] for name in results[0]}

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

    def _with_first_answer(self, prompts: Iterator[Batch]) -> Iterator[Batch]:
        """Single samples, labelled with the proxy's most probable answer."""
        for prompt in prompts:
            for candidate in self._candidates(prompt)[0][:1]:
                try:
                    encoded = self.model.encoder.encode(candidate)
                except BadRecord:
                    continue
                yield self.model.collator.batch([candidate], [encoded]).to(self.model.device)

    def _candidates(self, batch: Batch) -> list[list[Sample]]:
        """For each sample, a copy with each of the proxy's answers; the sample itself if it has an answer."""
        samples = [_without_answer(sample) for sample in batch.samples] if self.options.hide_answers else batch.samples
        unlabelled = [i for i, sample in enumerate(samples) if not any(t.trained for t in sample.turns)]
        texts = dict(zip(unlabelled, _generate_answers(self.model, batch, unlabelled, self.options), strict=True))
        return [
            [replace(sample, turns=(*sample.turns, Turn("assistant", text, trained=True))) for text in texts[i]]
            if i in texts
            else [sample]
            for i, sample in enumerate(samples)
        ]


def _generate_answers(model: MultimodalModel, batch: Batch, rows: Sequence[int], options: Any) -> list[list[str]]:
    """The most probable answers to each prompt, without empty ones and repetitions."""
    if not rows:
        return []
    # Generation appends on the right, so prompts are padded on the left; the positions follow from the mask.
    collator = replace(model.collator, side="left", positions=False)
    prompts = collator.batch([batch.samples[i] for i in rows], [batch.encoded[i] for i in rows]).to(model.device)
    inputs = {k: v.to(model.dtype) if v.is_floating_point() else v for k, v in prompts.inputs.items()}
    count, end = options.answers, AnswerEnd(model)
    with torch.no_grad():
        out = model.model.generate(  # type: ignore[operator]
            **inputs,
            max_new_tokens=options.max_new_tokens,
            do_sample=False,
            num_beams=count,
            num_return_sequences=count,
            **end.options,
        )
    texts = [end.read(row)[0] for row in out[:, inputs["input_ids"].shape[1] :].tolist()]
    return [list(dict.fromkeys(t for t in texts[k * count : (k + 1) * count] if t.strip())) for k in range(len(rows))]


def _without_answer(sample: Sample) -> Sample:
    """The turns before the last answer; earlier answers become context."""
    return replace(sample, turns=tuple(replace(turn, trained=False) for turn in sample.turns[: sample.last_reply]))
