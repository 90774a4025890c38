"""Recognizes that memory ran out, and trains on smaller micro-batches then."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ostlight.errors import OstlightError
from ostlight.models.batch import Batch, by_token_budget

T = TypeVar("T")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory of the device or of the machine ran out; PyTorch has no class of its own for the latter."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def device_memory(accelerator: str) -> int | None:
    """Bytes of the first device that ``compute.accelerator`` takes on this machine; ``None`` where it cannot be told.

    On a CPU it is the machine's memory.
    """
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        return int(torch.cuda.get_device_properties(0).total_memory)
    return machine_memory() if accelerator in ("auto", "cpu") else None


def machine_memory() -> int | None:
    """Bytes of this machine's memory; ``None`` where it cannot be told."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class TokenBudget:
    """Halves the micro-batches of a training step whenever memory runs out; they stay halved.

    Attributes:
        most: padded tokens a micro-batch may have; ``None`` until memory runs out.
        on_halving: called with a message at every halving.
    """

    def __init__(self) -> None:
        self.most: int | None = None
        self.on_halving: Callable[[str], None] = lambda message: None

    def run(self, micro_batches: Sequence[Batch], work: Callable[[list[Batch]], T]) -> T:
        """``work`` on the same samples, in smaller micro-batches where memory runs out.

        Args:
            work: starts from the beginning when it is called again.

        Raises:
            OstlightError: memory runs out on single samples too.
        """
        while True:
            parts = self.split(micro_batches)
            try:
                return work(parts)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                self.halve(parts, error)
            # Only here does nothing hold the tensors of the pass that failed.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def split(self, micro_batches: Sequence[Batch]) -> list[Batch]:
        """Returns the same samples in micro-batches that keep to the limit."""
        return [part for micro in micro_batches for part in self._within(micro)]

    def follow(self, most: int) -> None:
        """Takes over the limit of the rank that has the lowest."""
        if most < (self.most or most + 1):
            self.most = most
            self.on_halving(f"out of memory on another rank: from here on a micro-batch has at most {most:,} tokens")

    def _within(self, micro: Batch) -> list[Batch]:
        if self.most is None or micro.padded_tokens <= self.most:
            return [micro]
        return [micro.rows(group) for group in by_token_budget(micro.tokens, self.most)]

    def halve(self, parts: Sequence[Batch], error: Exception) -> None:
        """Lowers the limit to half of the largest of ``parts`` that holds several samples.

        Raises:
            OstlightError: none does.
        """
        largest = max(parts, key=lambda part: part.padded_tokens)
        several = [part.padded_tokens for part in parts if len(part) > 1]
        if not several:
            raise OstlightError(
                f"out of memory while training, on samples one by one, the longest of {max(largest.tokens)} tokens: "
                f"{error}; lower max_length, take a smaller model, or, for a target, set target.lora or "
                "target.gradient_checkpointing"
            ) from error
        self.most = max(1, max(several) // 2)
        self.on_halving(
            f"out of memory on a micro-batch of {len(largest)} samples: from here on one has at most {self.most:,} "
            "tokens, half of that; the steps stay the same"
        )
