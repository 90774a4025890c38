"""Names of earlier versions. A configuration that uses one is refused, with the new name in the message."""

from __future__ import annotations

_ORDERS = {"easy_to_hard": "utility_descending", "hard_to_easy": "utility_ascending"}

RENAMED: dict[str, str] = {
    "budget.within": "stratify_by",
    "benchmark.budgets.within": "stratify_by",
    "benchmark.truth": "defect_labels",
    "benchmark.protocols=proportional": "equal_epochs",
    "benchmark.protocols=fixed_compute": "equal_steps",
    **{f"target.training.order={old}": new for old, new in _ORDERS.items()},
    **{f"proxy.warmup.training.order={old}": new for old, new in _ORDERS.items()},
}
"""Old key, or ``key=value``, to the new name; see ``ostlight.config.bind.bind``."""
