"""Which process of a distributed run this is, before and without a Trainer."""

from __future__ import annotations

import os

SEPARATE_STORES = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Set to 1, torchrun's c10d rendezvous lets the ranks find each other by a new store at each restart."""

RANK_VARIABLES = ("SLURM_PROCID", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK")
"""What launchers set where ``RANK`` is not set: one of them is above 0 on every rank but the first."""

CLUSTER_PROCESS = "OSTLIGHT_CLUSTER_PROCESS"
"""Number of a process of a Ray cluster among those that work on the same; they are no ranks, and do not communicate."""


def cluster_process() -> int:
    """Returns this process's number among those of a Ray cluster that work on the same; 0 where there is no cluster."""
    return int(os.environ.get(CLUSTER_PROCESS, "0"))


def is_first_rank() -> bool:
    """Whether this is the process that writes files and logs for all ranks.

    Once Lightning is imported its own rank (``rank_zero_only.rank``) is set from the same variables; this one is there
    before, and costs no import.
    """
    names = ("RANK",) if "RANK" in os.environ else RANK_VARIABLES
    return all(int(os.environ.get(name, "0")) == 0 for name in (*names, CLUSTER_PROCESS))


def world_size() -> int:
    """Returns how many ranks torchrun or Lightning has started; 1 where it started none."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def started_beside_others() -> bool:
    """Whether a launcher (torchrun, srun) has started other ranks with this one, which may be anywhere in their work;
    those that Lightning starts come later."""
    return world_size() > 1 or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def shares_store_between_restarts() -> bool:
    """Whether torchrun will restart ranks with the store of those that died, where they may read the addresses of the
    dead ones and not find each other (https://github.com/pytorch/pytorch/issues/135712; PyTorch 2.5 to 2.13)."""
    names = ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_MAX_RESTARTS")
    shared, restarts = (os.environ.get(name, "") for name in names)
    return shared == "True" and restarts.isdecimal() and int(restarts) > 0
