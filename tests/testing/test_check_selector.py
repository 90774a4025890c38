"""The conformance suite finds every kind of violation and says how to fix it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import ostlight
from ostlight.testing import check_selector


def violations(cls: type, folder: Path, **arguments: Any) -> str:
    with pytest.raises(AssertionError, match=f"^{cls.__name__} violates") as caught:
        check_selector(cls, folder=folder, processes=False, **arguments)
    return str(caught.value)


class Plain(ostlight.Selector):
    """Keeps the contract."""

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [len(s.answer) for s in batch.samples]}


class Ranked(ostlight.Selector):
    """Scores a sample by its place in the batch."""

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": list(range(len(batch)))}


class Counting(ostlight.Selector):
    """Scores a sample by how many came before it."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.seen = 0

    def score(self, batch: Any) -> dict[str, Any]:
        self.seen += len(batch)
        return {"score": [self.seen] * len(batch)}


class Unseeded(ostlight.Selector):
    """Scores at random without a seed, and selects more than the budget."""

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": torch.rand(len(batch)).tolist()}

    def select(self, scores: Any, budget: Any) -> Any:
        return range(len(scores))


class TwoTypes(ostlight.Selector):
    """Returns a column as numbers for some batches and as text for others."""

    def score(self, batch: Any) -> dict[str, Any]:
        lengths = [len(s.answer) for s in batch.samples]
        remark: Any = lengths if batch.samples[0].position < 8 else [str(n) for n in lengths]
        return {"score": lengths, "remark": remark}


class StoresSamples(ostlight.Selector):
    """Returns the samples themselves as a column."""

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [0.0] * len(batch), "sample": batch.samples}


class NoSuperInit(ostlight.Selector):
    """Does not call the constructor of its base class."""

    def __init__(self, options: Any = None) -> None:
        self.top = 3

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [0.0] * len(batch)}


class HidesNaN(ostlight.Selector):
    """Replaces NaN by 0."""

    uses_proxy: ClassVar[bool] = True

    def setup(self, context: Any) -> None:
        self.model = context.proxy.model

    def score(self, batch: Any) -> dict[str, Any]:
        with torch.no_grad():
            return {"score": self.model.losses(batch).nan_to_num(0.0)}


class RequiresServer(ostlight.Selector):
    """Requires an option."""

    @dataclass
    class Options:
        """Attributes:
        server: an address.
        """

        server: str | None = None

    def setup(self, context: Any) -> None:
        if self.options.server is None:
            raise ostlight.errors.SelectorError("selector.options.server is missing")

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [len(s.answer) for s in batch.samples]}


def drawn(seed: int, sample: Any) -> float:
    return float(np.random.default_rng([seed, *sample.id.encode()]).random())


class FollowsSeed(ostlight.Selector):
    """Draws scores from the seed, and does not say so."""

    def setup(self, context: Any) -> None:
        self.seed = context.seed

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [drawn(self.seed, s) for s in batch.samples]}


class Swallows(ostlight.Selector):
    """Gives 0 where it fails, which is everywhere."""

    def score(self, batch: Any) -> dict[str, Any]:
        try:
            return {"score": [s.no_such_field for s in batch.samples]}
        except Exception:
            return {"score": [0.0] * len(batch)}


class MixesStrata(ostlight.Selector):
    """Says that it shares the budget among strata, and does not."""

    handles_strata: ClassVar[bool] = True

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [float(ord(s.tags["task"][0])) + drawn(0, s) for s in batch.samples]}

    def select(self, scores: Any, budget: Any) -> Any:
        return replace(budget, stratify_by=None).top(scores)


class HidesBehindOutlier(ostlight.Selector):
    """Subtracts the batch's mean, beside one score that is far above all others."""

    def score(self, batch: Any) -> dict[str, Any]:
        lengths = torch.tensor([float(len(s.answer)) + drawn(0, s) for s in batch.samples])
        return {"score": lengths - lengths.mean() + torch.tensor([1e9 * (s.position == 3) for s in batch.samples])}


class ReadsSelectionOption(ostlight.Selector):
    """Multiplies its scores by an option that is said to change the selection alone."""

    @dataclass
    class Options:
        """Attributes:
        scale: of the score.
        shift: of the score.
        """

        scale: float = 2.0
        shift: float = 1.0

    selection_options: ClassVar[tuple[str, ...]] = ("scale",)

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [self.options.scale * drawn(0, s) + self.options.shift for s in batch.samples]}


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (ReadsSelectionOption, "selection_options: score reads 'scale'"),
        (FollowsSeed, "another seed: scores follow the seed; set stochastic = True"),
        (Swallows, "every sample got the score 0.0"),
        (MixesStrata, "set handles_strata to False"),
        (HidesBehindOutlier, "other batches gave another table: column 'score'"),
    ],
)
def test_what_a_selector_hides_is_found(cls: type[ostlight.Selector], message: str, tmp_path: Path):
    assert message in violations(cls, tmp_path)


class ReadsScoringOptions(ReadsSelectionOption):
    """The same, without saying so of any option."""

    selection_options: ClassVar[tuple[str, ...]] = ()


def test_a_score_may_read_options_that_change_it(tmp_path: Path):
    check_selector(ReadsScoringOptions, folder=tmp_path, processes=False)


def test_a_selector_that_keeps_the_contract_passes(tmp_path: Path):
    check_selector(Plain, folder=tmp_path, processes=False)


def test_a_score_that_depends_on_its_batch(tmp_path: Path):
    message = violations(Ranked, tmp_path)
    assert "other batches and another order: other batches gave another table: column 'score'" in message


def test_a_score_that_depends_on_what_came_before(tmp_path: Path):
    message = violations(Counting, tmp_path)
    assert "an interrupted run: the resumed run gave another table" in message


def test_randomness_without_a_seed_and_an_exceeded_budget(tmp_path: Path):
    message = violations(Unseeded, tmp_path)
    assert "a second run: the same run gave another table" in message
    assert "context.seed" in message
    assert "select: with 1 it selects 28 of 28 samples" in message


class HoldsNaN(ostlight.Selector):
    """Stores NaN in a column of scored samples."""

    def score(self, batch: Any) -> dict[str, Any]:
        return {
            "score": [float(len(s.answer)) for s in batch.samples],
            "ratio": [float("nan") if len(s.answer) % 2 else 1.0 for s in batch.samples],
        }


def test_nan_in_a_column_of_a_scored_sample(tmp_path: Path):
    said = violations(HoldsNaN, tmp_path)
    assert "column 'ratio' holds NaN" in said


def test_a_column_of_two_types(tmp_path: Path):
    message = violations(TwoTypes, tmp_path)
    assert "column 'remark' is int64 in part-000000.parquet and string in part-000001.parquet" in message
    assert "return the same type for every batch" in message


def test_a_column_that_cannot_be_stored(tmp_path: Path):
    assert "column 'sample' of the selector's score cannot be stored" in violations(StoresSamples, tmp_path)


def test_a_constructor_without_super_init(tmp_path: Path):
    assert "super().__init__(options)" in violations(NoSuperInit, tmp_path)


def test_nan_replaced_by_a_number(tmp_path: Path):
    message = violations(HidesNaN, tmp_path)
    assert "got the score 0.0 although the proxy returned NaN" in message


def test_a_required_option(tmp_path: Path):
    assert "a run: SelectorError: selector.options.server is missing" in violations(RequiresServer, tmp_path)
    check_selector(RequiresServer, {"server": "here"}, folder=tmp_path / "given", processes=False)


class Client:
    """Works in the first event loop that uses it, as clients of paid services do."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None

    async def ask(self, text: str) -> float:
        self.loop = self.loop or asyncio.get_running_loop()
        if self.loop is not asyncio.get_running_loop() and len(asyncio.all_tasks()) > 2:
            raise RuntimeError("bound to a different event loop")
        return float(len(text))


class NewLoop(ostlight.Selector):
    """Uses one client from a new event loop for every batch."""

    def setup(self, context: Any) -> None:
        self.client = Client()

    async def all(self, texts: list[str]) -> list[float]:
        return await asyncio.gather(*(self.client.ask(text) for text in texts))

    def score(self, batch: Any) -> dict[str, Any]:
        self.usage.add(calls=len(batch))
        return {"score": asyncio.run(self.all([s.answer for s in batch.samples]))}


class FailsOnSome(ostlight.Selector):
    """Raises an unexpected exception for some samples."""

    def score(self, batch: Any) -> dict[str, Any]:
        if any(s.id.endswith("5") for s in batch.samples):
            raise ValueError("a five")
        return {"score": [len(s.answer) for s in batch.samples]}


class HalfPrecision(ostlight.Selector):
    """Returns half-precision tensors that require gradients."""

    uses_proxy: ClassVar[bool] = True

    def setup(self, context: Any) -> None:
        self.model = context.proxy.model

    def score(self, batch: Any) -> dict[str, Any]:
        losses = self.model.losses(batch)
        assert losses.requires_grad
        pair = torch.stack([losses, 2 * losses], 1).to(torch.bfloat16)
        return {"score": losses.half(), "pair": pair, "hard": losses > 1}


def test_a_batch_that_fails_where_its_samples_alone_do_not(tmp_path: Path):
    message = violations(NewLoop, tmp_path)
    assert "on none of their samples alone: RuntimeError: bound to a different event loop" in message
    assert "keep an asyncio.Runner" in message


def test_records_that_score_fails_on_are_reported_once(tmp_path: Path):
    message = violations(FailsOnSome, tmp_path)
    assert "score failed on 3 of 30 records, first on 'pool-00005': ValueError: a five" in message
    assert "raise ostlight.errors.BadRecord" in message


def test_half_precision_tensors_with_gradients(tmp_path: Path):
    check_selector(HalfPrecision, folder=tmp_path, processes=False)
