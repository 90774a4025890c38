"""The conformance suite finds what it is there to find, and names the mend."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import ostlight
from ostlight.testing import check_selector


def violations(cls: type, folder: Path, **arguments: Any) -> str:
    with pytest.raises(AssertionError, match=f"{cls.__name__} breaks the contract of a selector:\n  - ") as caught:
        check_selector(cls, folder=folder, processes=False, **arguments)
    return str(caught.value)


class Plain(ostlight.Selector):
    """Holds to everything."""

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


class Dice(ostlight.Selector):
    """Throws dice without a seed, and keeps more than it may."""

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": torch.rand(len(batch)).tolist()}

    def select(self, scores: Any, budget: Any) -> Any:
        return range(len(scores))


class Fickle(ostlight.Selector):
    """Calls a long answer true and a short one by its length."""

    def score(self, batch: Any) -> dict[str, Any]:
        lengths = [len(s.answer) for s in batch.samples]
        remark: Any = lengths if batch.samples[0].position < 8 else [str(n) for n in lengths]
        return {"score": lengths, "remark": remark}


class Keepsake(ostlight.Selector):
    """Keeps the samples themselves as evidence."""

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [0.0] * len(batch), "sample": batch.samples}


class Orphan(ostlight.Selector):
    """Forgets its parent."""

    def __init__(self, options: Any = None) -> None:
        self.top = 3

    def score(self, batch: Any) -> dict[str, Any]:
        return {"score": [0.0] * len(batch)}


class Zero(ostlight.Selector):
    """Takes what is no number for 0."""

    uses_proxy: ClassVar[bool] = True

    def setup(self, context: Any) -> None:
        self.model = context.proxy.model

    def score(self, batch: Any) -> dict[str, Any]:
        with torch.no_grad():
            return {"score": self.model.losses(batch).nan_to_num(0.0)}


class Demanding(ostlight.Selector):
    """Wants an option, and gives up without it."""

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


def test_what_holds_the_contract_passes(tmp_path: Path):
    check_selector(Plain, folder=tmp_path, processes=False)


def test_a_score_that_depends_on_its_batch(tmp_path: Path):
    told = violations(Ranked, tmp_path)
    assert "other batches and another order: other batches gave another table: column 'score' of record" in told
    assert "a score may depend on its sample alone" in told


def test_a_score_that_depends_on_what_came_before(tmp_path: Path):
    told = violations(Counting, tmp_path)
    assert "a stopped run: taken up again it gave another table" in told
    assert "keep nothing from one batch to the next" in told


def test_chance_without_a_seed_and_a_budget_overdrawn(tmp_path: Path):
    told = violations(Dice, tmp_path)
    assert "a second run: the same run gave another table" in told
    assert "draw with context.seed" in told
    assert "pick: with 1 it keeps 28 of 28; use budget.size(len(scores))" in told


def test_a_column_of_two_types(tmp_path: Path):
    told = violations(Fickle, tmp_path)
    assert "column 'remark' is int64 in part-000000.parquet and string in part-000001.parquet" in told
    assert "return the same type for every batch" in told


def test_a_column_of_things(tmp_path: Path):
    assert "column 'sample' of the selector's score cannot be stored" in violations(Keepsake, tmp_path)


def test_a_constructor_that_forgets_its_parent(tmp_path: Path):
    assert "call super().__init__(options) first in __init__" in violations(Orphan, tmp_path)


def test_a_number_made_of_none(tmp_path: Path):
    told = violations(Zero, tmp_path)
    assert "got the score 0.0 from a proxy that gave NaN; let NaN through" in told


def test_options_a_selector_cannot_do_without(tmp_path: Path):
    assert "a run: SelectorError: selector.options.server is missing" in violations(Demanding, tmp_path)
    check_selector(Demanding, {"server": "here"}, folder=tmp_path / "given", processes=False)


class Client:
    """Serves the first event loop it meets, as clients of paid services do."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None

    async def ask(self, text: str) -> float:
        self.loop = self.loop or asyncio.get_running_loop()
        if self.loop is not asyncio.get_running_loop() and len(asyncio.all_tasks()) > 2:
            raise RuntimeError("bound to a different event loop")
        return float(len(text))


class NewLoop(ostlight.Selector):
    """Asks one client from an event loop a batch."""

    def setup(self, context: Any) -> None:
        self.client = Client()

    async def all(self, texts: list[str]) -> list[float]:
        return await asyncio.gather(*(self.client.ask(text) for text in texts))

    def score(self, batch: Any) -> dict[str, Any]:
        self.usage.add(calls=len(batch))
        return {"score": asyncio.run(self.all([s.answer for s in batch.samples]))}


class Moody(ostlight.Selector):
    """Fails on some samples, in a way nobody planned."""

    def score(self, batch: Any) -> dict[str, Any]:
        if any(s.id.endswith("5") for s in batch.samples):
            raise ValueError("a five")
        return {"score": [len(s.answer) for s in batch.samples]}


class Halves(ostlight.Selector):
    """Returns tensors as they come: half precision, with gradients on."""

    uses_proxy: ClassVar[bool] = True

    def setup(self, context: Any) -> None:
        self.model = context.proxy.model

    def score(self, batch: Any) -> dict[str, Any]:
        losses = self.model.losses(batch)
        assert losses.requires_grad
        pair = torch.stack([losses, 2 * losses], 1).to(torch.bfloat16)
        return {"score": losses.half(), "pair": pair, "hard": losses > 1}


def test_a_batch_that_fails_where_its_samples_alone_do_not(tmp_path: Path):
    told = violations(NewLoop, tmp_path)
    assert "on none of their samples alone: RuntimeError: bound to a different event loop" in told
    assert "keep an asyncio.Runner" in told


def test_records_that_score_fails_on_are_told_once(tmp_path: Path):
    told = violations(Moody, tmp_path)
    assert "score failed on 3 of 30 records, first on 'pool-00005': ValueError: a five" in told
    assert "raise ostlight.errors.BadRecord" in told
    assert issubclass(ostlight.errors.BadRecord, Exception)


def test_half_tensors_with_gradients_on(tmp_path: Path):
    check_selector(Halves, folder=tmp_path, processes=False)
