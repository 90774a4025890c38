"""What a record says before its images are looked up."""

from __future__ import annotations

from typing import Any, NamedTuple

from ostlight.data.sample import Turn

NEXT_IMAGE: Any = object()
"""Stands for a mark whose image is in the record's own list."""


class Draft(NamedTuple):
    """Turns, and the images as the record names them (paths, addresses, bytes), in the order of their marks."""

    turns: list[Turn]
    images: list[Any]
