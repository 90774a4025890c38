"""Every selector that ships with ostlight holds to the contract; a new one is covered as soon as it is registered."""

from __future__ import annotations

from typing import Any

import pytest

from ostlight.selection import registry
from ostlight.testing import check_selector

OURS = [name for name in registry.names() if registry.find(name).source.startswith("ostlight ")]
OPTIONS: dict[str, dict[str, Any]] = {
    "combine": {"how": "cascade", "of": [{"name": "loss", "keep": 0.5}, {"name": "length"}]},
    "deita": {"complexity": None, "quality": None},
    "ost": {"estimator": "exact", "scope": "head"},
}
"""Options a selector cannot do without, or that make it quick enough here."""
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("combine", {"how": "rank_mean", "of": [{"name": "loss"}, {"name": "length"}]}),
    ("ost", {"estimator": "exact"}),
    ("ost", {"estimator": "second_order", "probes": 4}),
    ("ost", {"estimator": "first_order", "optimizer": "adam"}),
    ("ost", {"estimator": "second_order", "probes": 4, "objective": "set"}),
]


@pytest.mark.parametrize("name", OURS)
def test_it_holds_the_contract(name: str):
    check_selector(name, OPTIONS.get(name), processes=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_it_holds_the_contract_killed_and_on_two_ranks(name: str):
    check_selector(name, OPTIONS.get(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values()))
)
def test_a_variant_holds_the_contract(name: str, options: dict[str, Any]):
    check_selector(name, options, processes=False)
