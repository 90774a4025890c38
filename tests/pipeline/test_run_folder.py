"""Which process writes for all, and what a stage made from other inputs is refused with."""

from __future__ import annotations

import pytest

from ostlight.pipeline.run_folder import changed_inputs
from ostlight.ranks import CLUSTER_PROCESS, RANK_VARIABLES, is_first_rank, shares_store_between_restarts


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "0", "NODE_RANK": "0", "LOCAL_RANK": "1"}, False),
        ({"SLURM_PROCID": "0", "NODE_RANK": "0", "LOCAL_RANK": "0"}, True),
        ({CLUSTER_PROCESS: "0"}, True),
        ({CLUSTER_PROCESS: "2"}, False),
    ],
    ids=[
        "alone",
        "first",
        "torchrun",
        "srun",
        "node",
        "node with ranks",
        "ranks of a shell under srun",
        "the first there",
        "first of a cluster",
        "another of a cluster",
    ],
)
def test_one_rank_is_the_first(environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", *RANK_VARIABLES, CLUSTER_PROCESS):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_rank() is first


@pytest.mark.parametrize(
    ("shared", "restarts", "expected"),
    [(None, None, False), ("True", "3", True), ("True", "0", False), ("False", "3", False)],
    ids=["no torchrun", "restarts", "none", "a new store for each"],
)
def test_stores_of_dead_ranks(shared: str | None, restarts: str | None, expected: bool, monkeypatch):
    for name, value in (("TORCHELASTIC_USE_AGENT_STORE", shared), ("TORCHELASTIC_MAX_RESTARTS", restarts)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert shares_store_between_restarts() is expected


def test_of_another_selector_only_that_it_is_another_is_listed():
    before = {"selector": "ost", "selector's code": "a", "selector.options": "b", "proxy": "c", "seed": "0"}
    now = {"selector": "random", "selector's code": "d", "selector.options": "e", "seed": "1"}
    assert changed_inputs(before, now) == ["seed", "selector"]
    assert changed_inputs(before, before | {"selector.options": "e"}) == ["selector.options"]
