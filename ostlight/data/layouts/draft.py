"""What a record says before its pictures are looked up."""

from __future__ import annotations

from typing import Any, NamedTuple

from ostlight.data.sample import Turn

NEXT_PICTURE: Any = object()
"""Stands for a mark whose picture is in the record's own list."""


class Draft(NamedTuple):
    """Turns, and the pictures as the record names them (paths, addresses, bytes), in the order of their marks."""

    turns: list[Turn]
    pictures: list[Any]
