"""What a selector paid that the framework cannot see for itself."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass


@dataclass
class Usage:
    """Requests to served models and their price, and work outside PyTorch; each rank counts its own.

    Time, devices, samples and the proxy's tokens and FLOPs are measured by the framework and do not belong here.

    Attributes:
        calls: requests that were answered, or may have been: what a vendor would charge.
        tokens_in: tokens of the requests.
        tokens_out: tokens of the answers.
        price: money they cost, in the currency of the selector's price table.
        flops: floating-point operations of models the selector holds itself. What ``score`` of a selector with
            ``uses_proxy`` does in PyTorch is counted by the framework: counted here too, it would count twice.
    """

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    price: float = 0.0
    flops: float = 0.0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(
        self, *, calls: int = 0, tokens_in: int = 0, tokens_out: int = 0, price: float = 0.0, flops: float = 0.0
    ) -> None:
        """Adds to each; safe from several threads."""
        with self._lock:
            self.calls += calls
            self.tokens_in += tokens_in
            self.tokens_out += tokens_out
            self.price += price
            self.flops += flops

    def copy(self) -> Usage:
        """As it is now."""
        with self._lock:
            return dataclasses.replace(self)

    def since(self, earlier: Usage) -> Usage:
        """What was added after ``earlier`` was copied."""
        now = self.copy()
        return Usage(**{name: getattr(now, name) - getattr(earlier, name) for name in NAMES})

    def __getstate__(self) -> dict[str, float]:
        # Locks cannot be pickled, and worker processes are handed their selector pickled.
        return {name: getattr(self, name) for name in NAMES}

    def __setstate__(self, state: dict[str, float]) -> None:
        self.__dict__.update(state)
        self.__post_init__()


NAMES = tuple(f.name for f in dataclasses.fields(Usage))
