"""What one training step on a sample does to the loss on trusted anchors: a library on torch alone.

``UtilityScorer`` is the entry; ``docs/how-to/score-with-your-own-model.md`` shows it at work. Nothing is imported
before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ostlight.influence.agreement import rank_agreement
    from ostlight.influence.gradients.random_products import RandomDirections
    from ostlight.influence.kronecker import kronecker_preconditioner
    from ostlight.influence.other_anchors import anchor_products
    from ostlight.influence.parameters import select_parameters
    from ostlight.influence.preconditioner import Preconditioner, adam_preconditioner
    from ostlight.influence.scorer import UtilityScorer, UtilityScores
    from ostlight.influence.step_size import first_adam_step, median_step_size
    from ostlight.influence.task import CausalLM, Classification, Task

_MODULES = {
    "CausalLM": "task",
    "Classification": "task",
    "Preconditioner": "preconditioner",
    "RandomDirections": "gradients.random_products",
    "Task": "task",
    "UtilityScorer": "scorer",
    "UtilityScores": "scorer",
    "adam_preconditioner": "preconditioner",
    "anchor_products": "other_anchors",
    "first_adam_step": "step_size",
    "kronecker_preconditioner": "kronecker",
    "median_step_size": "step_size",
    "rank_agreement": "agreement",
    "select_parameters": "parameters",
}

__all__ = [
    "CausalLM",
    "Classification",
    "Preconditioner",
    "RandomDirections",
    "Task",
    "UtilityScorer",
    "UtilityScores",
    "adam_preconditioner",
    "anchor_products",
    "first_adam_step",
    "kronecker_preconditioner",
    "median_step_size",
    "rank_agreement",
    "select_parameters",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *globals()})
