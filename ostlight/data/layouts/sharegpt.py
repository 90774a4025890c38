"""LLaVA and ShareGPT: ``conversations`` of ``from``/``value``, images in ``image`` or ``images``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ostlight.data.layouts.chat import draft_of_turns
from ostlight.data.layouts.draft import Draft

NAME = "sharegpt"
FIELDS = frozenset({"conversations", "system"})


def matches(record: Mapping[str, Any]) -> bool:
    return "conversations" in record


def read(record: Mapping[str, Any], labelled: bool) -> Draft:
    return draft_of_turns(record, "conversations")
