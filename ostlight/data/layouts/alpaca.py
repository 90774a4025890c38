"""Alpaca: ``instruction``, ``input``, ``output``, with ``system`` and ``history`` where there are earlier turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ostlight.data.layouts.draft import Draft
from ostlight.data.layouts.fields import images, items, text, wrong_type
from ostlight.data.sample import Turn

NAME = "alpaca"
FIELDS = frozenset({"instruction", "input", "output", "system", "history"})


def matches(record: Mapping[str, Any]) -> bool:
    return "instruction" in record


def read(record: Mapping[str, Any], labelled: bool) -> Draft:
    """Instruction and input make one turn, joined by a newline. Answers in the history are trained on too.

    Raises:
        BadRecord: ``bad_field``.
    """
    turns: list[Turn] = []
    system = text(record, "system")
    if system:
        turns.append(Turn("system", system))
    for n, pair in enumerate(items(record, "history")):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(said, str) for said in pair)):
            raise wrong_type(f"history[{n}]", "a pair of texts", pair)
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1], trained=True)]
    asked = [said for said in (text(record, "instruction"), text(record, "input")) if said]
    turns.append(Turn("user", "\n".join(asked)))
    output = text(record, "output")
    if output is not None and (labelled or output.strip()):
        turns.append(Turn("assistant", output, trained=True))
    return Draft(turns, images(record))
