"""OpenAI: ``messages`` of ``role``/``content``, content as text or as parts; images in parts or in ``images``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ostlight.data.layouts.chat import draft_of_turns
from ostlight.data.layouts.draft import Draft

NAME = "messages"
FIELDS = frozenset({"messages", "system"})


def matches(record: Mapping[str, Any]) -> bool:
    return "messages" in record


def read(record: Mapping[str, Any], labelled: bool) -> Draft:
    return draft_of_turns(record, "messages")
