"""Counts the floating-point operations of whatever runs under it."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_no_composites: set[Any] = set()
"""Operators that do not decompose into others."""


class FlopCounter(TorchDispatchMode):
    """Adds up the FLOPs of every operator within it, forward and backward, by torch's own formulas.

    Counts what ``torch.utils.flop_counter.FlopCounterMode`` counts. That one counts each module and decomposes every
    operator again, which doubles the time of a small run: a selector's whole setup is counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        """FLOPs so far; a multiplication and its addition are two."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and func.namespace != "prim" and func not in _no_composites:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
            _no_composites.add(func)
        out = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=out)
        return out
