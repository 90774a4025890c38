"""Names of earlier versions are refused, and the message has the new one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ostlight.config import load_config
from ostlight.config.bind import bind
from ostlight.config.renamed import RENAMED
from ostlight.errors import ConfigError


def nested(path: str, value: object) -> dict[str, object]:
    """``{"a": {"b": value}}`` for ``a.b``; the benchmark's budgets and protocols are lists."""
    for name in reversed(path.split(".")):
        value = {name: [value] if name in ("budgets", "protocols") else value}
    return value  # type: ignore[return-value]


@pytest.mark.parametrize("old", RENAMED)
def test_old_names_are_refused_with_the_new_one(old: str):
    path, _, value = old.partition("=")
    with pytest.raises(ConfigError) as caught:
        load_config({"pool": {"path": "x"}} | nested(path, value or "task"))
    problem = caught.value.problems[0]
    assert RENAMED[old] in problem
    assert (value or path.split(".")[-1]) in problem


@dataclass
class Options:
    """A selector's."""

    step_size: float = 1.0
    order: str = "ascending"


def test_a_selector_can_rename_options_and_values():
    renamed = {"eta": "step_size", "order=up": "order=ascending", "depth": "set step_size instead"}
    with pytest.raises(ConfigError) as caught:
        bind(Options, {"eta": 1, "order": "up", "depth": 2}, "selector.options", renamed=renamed)
    assert caught.value.problems == [
        "selector.options.eta was renamed; write selector.options.step_size",
        "selector.options.order=up was renamed; write selector.options.order=ascending",
        "selector.options.depth: set step_size instead",
    ]
