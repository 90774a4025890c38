"""Every selector that ships with ostlight holds to the contract; a new one is covered as soon as it is registered."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ostlight.selection import registry
from ostlight.testing import check_selector
from ostlight.testing.checks import Checks
from ostlight.testing.pools import Pools
from ostlight.testing.runs import Runs

sys.path.insert(0, str(Path(__file__).parent / "llm_judge"))
from protocol import Loopback, Send, scored

OURS = [name for name in registry.names() if registry.find(name).source.startswith("ostlight ")]
OPTIONS: dict[str, dict[str, Any]] = {
    "active": {"estimator": "first_order", "parameters": "head", "step_size": 0.05, "answers": 2, "max_new_tokens": 4},
    "combine": {"how": "cascade", "of": [{"name": "loss", "keep": 0.5}, {"name": "length"}]},
    "deita": {"complexity": None, "quality": None},
    "ost": {"estimator": "exact", "parameters": "head", "objective": "sample"},
}
"""Options a selector cannot do without, or that make it quick enough here."""
ONE_OF_A_KIND = ("combine", "llm_judge", "loss", "ost", "random")
"""Others' scores, a server's, one pass, gradients, none: the quick tests' share."""
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("combine", {"how": "rank_mean", "of": [{"name": "loss"}, {"name": "length"}]}),
    ("ost", {"estimator": "exact", "objective": "sample"}),
    ("ost", {"estimator": "projected", "rank": 4}),
    ("ost", {"estimator": "second_order", "probes": 4, "objective": "sample"}),
    ("ost", {"estimator": "first_order", "optimizer": "adam", "objective": "sample"}),
    ("ost", {"estimator": "second_order", "probes": 4, "objective": "set"}),
]


def by_length(body: dict[str, Any], n: int) -> Send:
    """A judge that says the same of the same answer."""
    return scored(1 + len(body["messages"][1]["content"][-1]["text"]) % 5)


@pytest.fixture(scope="module")
def judge() -> Iterator[dict[str, Any]]:
    server = Loopback(by_length)
    yield {"model": "m", "base_url": server.url, "price": {"input": 1.0, "output": 2.0}}
    server.close()


def options_of(name: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.getfixturevalue("judge") if name == "llm_judge" else OPTIONS.get(name, {})


@pytest.mark.parametrize("name", [n if n in ONE_OF_A_KIND else pytest.param(n, marks=pytest.mark.slow) for n in OURS])
def test_it_holds_the_contract(name: str, request: pytest.FixtureRequest):
    check_selector(name, options_of(name, request), processes=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_it_holds_the_contract_killed_and_on_two_ranks(name: str, request: pytest.FixtureRequest, tmp_path: Path):
    """Beside what the quick test checks."""
    runs = Runs(registry.load(name), options_of(name, request), tmp_path, Pools.make(tmp_path / "pools"))
    assert not Checks(runs, tolerance=1e-6).violations(here=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values()))
)
def test_a_variant_holds_the_contract(name: str, options: dict[str, Any]):
    check_selector(name, options, processes=False)
