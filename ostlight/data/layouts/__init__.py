"""How a record says its conversation: one module per shape, told apart by the fields a record has."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ostlight.data.layouts import alpaca, messages, question, sharegpt

LAYOUTS: dict[str, ModuleType] = {shape.NAME: shape for shape in (sharegpt, messages, alpaca, question)}


def layout_of(record: Mapping[str, Any]) -> ModuleType | None:
    """The first shape whose fields the record has."""
    return next((shape for shape in LAYOUTS.values() if shape.matches(record)), None)
