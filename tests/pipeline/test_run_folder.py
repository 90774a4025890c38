"""Which process writes for all."""

from __future__ import annotations

import pytest

from ostlight.ranks import CLUSTER_PROCESS, RANK_VARIABLES, is_first_rank


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
