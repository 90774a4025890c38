"""Every selector that ships with ostlight keeps the contract; a new one is covered as soon as it is registered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import run_script
from judge_server import Loopback, Send, scored

from ostlight.selection import registry
from ostlight.testing import check_selector, processes
from ostlight.testing.checks import ContractCheck
from ostlight.testing.pools import PoolFiles
from ostlight.testing.runner import SelectorRunner

pytestmark = pytest.mark.usefixtures("few_samples_compared")

OURS = [name for name in registry.names() if registry.find(name).source.startswith("ostlight ")]
OST = {"name": "ost", "options": {"estimator": "second_order", "probes": 4, "parameters": "head", "step_size": 0.05}}
OST_SET = {"name": "ost", "label": "set", "options": OST["options"] | {"selection": "set"}}  # type: ignore[operator]
OPTIONS: dict[str, dict[str, Any]] = {
    "best_of": {"steps": 2, "candidates": [OST, {"name": "random"}, {"name": "loss"}, OST_SET]},
    "active": {"estimator": "first_order", "parameters": "head", "step_size": 0.05, "answers": 2, "max_new_tokens": 4},
    "combine": {"how": "cascade", "of": [{"name": "loss", "keep": 0.5}, {"name": "length"}]},
    "deita": {"complexity": None, "quality": None},
    "ost": {"estimator": "exact", "parameters": "head"},
}
"""Options that a selector requires, or that make it fast enough here."""
ALWAYS_CHECKED = ("combine", "grad_norm", "llm_judge", "loss", "random")
"""One selector of each kind: other selectors' scores, a server's, one forward pass, gradients, no model."""
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("best_of", {}),
    ("combine", {"how": "rank_mean", "of": [{"name": "loss"}, {"name": "length"}]}),
    ("combine", {"how": "intersection", "of": [{"name": "loss", "keep": 0.5}, {"name": "length"}]}),
    ("ost", {"estimator": "exact"}),
    ("ost", {"estimator": "projected", "rank": 4}),
    ("ost", {"estimator": "second_order", "probes": 4}),
    ("ost", {"estimator": "first_order", "step": "adam"}),
    ("ost", {"estimator": "second_order", "probes": 4, "selection": "set"}),
]


def by_length(body: dict[str, Any], n: int) -> Send:
    """A judge that gives the same answer the same score."""
    return scored(1 + len(body["messages"][1]["content"][-1]["text"]) % 5)


@pytest.fixture(scope="module")
def judge() -> Iterator[dict[str, Any]]:
    server = Loopback(by_length)
    yield {"model": "m", "base_url": server.url, "price": {"input": 1.0, "output": 2.0}}
    server.close()


def options_of(name: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.getfixturevalue("judge") if name == "llm_judge" else OPTIONS.get(name, {})


@pytest.mark.parametrize("name", [n if n in ALWAYS_CHECKED else pytest.param(n, marks=pytest.mark.slow) for n in OURS])
def test_it_keeps_the_contract(name: str, request: pytest.FixtureRequest):
    check_selector(name, options_of(name, request), processes=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_it_keeps_the_contract_when_killed_and_on_two_ranks(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(processes, "run_script", run_script)  # saves the imports of a new process
    runner = SelectorRunner(registry.load(name), options_of(name, request), tmp_path, PoolFiles.create(tmp_path / "p"))
    assert ContractCheck(runner, tolerance=1e-6).find_violations(in_process=False) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values()))
)
def test_a_variant_keeps_the_contract(name: str, options: dict[str, Any]):
    check_selector(name, options, processes=False)
