"""Counts the floating-point operations of whatever runs under it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_counting: list[FlopCounter] = []
"""Those that count now."""

_no_composites: set[Any] = set()
"""Operators that do not decompose into others."""


def _grouped(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """Of products of groups of rows with a matrix each (mixtures of experts): each row meets one matrix.

    Args:
        a, b: ``[S, K]`` and ``[E, K, N]``; in the backward pass also ``[K, S]`` and ``[S, N]``, or ``[E, M, K]`` and
            ``[K, S]``.
    """
    columns = b.shape[-1]
    return 2 * a.numel() * columns if a.ndim == 2 or b.ndim == 3 else 2 * a.shape[1] * a.shape[2] * columns


def _grouped_backward(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """Both gradients."""
    return 2 * _grouped(a, b)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """As torch counts attention on a GPU: a causal mask saves nothing."""
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape))


UNREGISTERED: dict[str, Callable[..., int]] = {
    "aten::_grouped_mm": _grouped,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "transformers::grouped_mm_fallback": _grouped,
    "transformers::grouped_mm_fallback_backward": _grouped_backward,
}
"""Operators that torch has no formula for, by name."""


class FlopCounter(TorchDispatchMode):
    """Adds up the FLOPs of every operator within it, forward and backward, by torch's own formulas.

    Counts what ``torch.utils.flop_counter.FlopCounterMode`` counts, and the grouped products of experts. That one
    counts each module and decomposes every operator again, which doubles the time of a small run: a selector's whole
    setup is counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        """FLOPs so far; a multiplication and its addition are two."""

    def __enter__(self) -> FlopCounter:
        _counting.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _counting.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        known = UNREGISTERED.get(func._overloadpacket._qualified_op_name) if formula is None else None
        if known is not None:
            self.total += known(*args, **kwargs)
            return func(*args, **kwargs)
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


@contextmanager
def counted_apart() -> Iterator[FlopCounter]:
    """Inside, the counter that is yielded counts, and none of those around it."""
    before = [(counter, counter.total) for counter in _counting]
    try:
        with FlopCounter() as own:
            yield own
    finally:
        for counter, total in before:
            counter.total = total
