"""What a process of a Ray cluster takes over, and what is refused before one is asked for. No cluster is needed."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

import ostlight
from ostlight.config.schema import Compute
from ostlight.errors import ClusterError, ConfigError
from ostlight.pipeline.ray_cluster import Driver, Place, handle, recorded
from ostlight.ranks import CLUSTER_PROCESS, cluster_process, is_first_rank
from ostlight.selection import registry
from ostlight.selection.selector import Selector


class OfTheProgram(Selector):
    """Scores nothing."""

    def score(self, batch):
        raise NotImplementedError


def test_a_process_works_in_the_drivers_folder_with_its_selectors_and_is_no_rank(tmp_path: Path, monkeypatch):
    monkeypatch.chdir("/")
    for name, value in {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "RANK": "2", CLUSTER_PROCESS: "7"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(registry, "_registered", {})
    Driver(tmp_path, logging.INFO, {"of_the_program": OfTheProgram}).enter(1)
    assert Path.cwd() == tmp_path
    assert registry.load("of_the_program") is OfTheProgram
    assert not [name for name in os.environ if name.startswith("SLURM_") or name == "RANK"]
    assert (cluster_process(), is_first_rank()) == (1, False)
    Driver(tmp_path, logging.INFO, {}).enter()
    assert is_first_rank()


def test_a_node_that_does_not_see_the_drivers_folder_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setenv(CLUSTER_PROCESS, "0")
    with pytest.raises(ClusterError, match="every node"):
        Driver(tmp_path / "elsewhere", logging.INFO, {}).enter()


def test_records_of_later_processes_are_told_from_warnings_up(logged):
    log = logging.getLogger("ostlight.test")
    with recorded() as records:
        log.info("set up %s", "once")
        log.warning("odd")
    logged()
    handle(records, logging.WARNING)
    assert logged() == "odd\n"
    handle(records)
    assert logged() == "set up once\nodd\n"


def test_a_place_runs_on_its_one_device_without_a_cluster():
    asked = Compute(engine="ray", address="auto", devices=8, num_nodes=2, strategy="fsdp", precision="bf16-mixed")
    on_gpu, on_cpu = (Place(gpus, 4).compute(asked) for gpus in (1, 0))
    assert on_cpu == Compute(accelerator="cpu", precision="bf16-mixed", workers=3, progress=False)
    assert on_gpu == Compute(precision="bf16-mixed", workers=3, progress=False)
    assert Place(1, 4).options == {"num_gpus": 1, "num_cpus": 4}


def test_without_the_package_the_extra_is_named(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"ostlight\[ray\]"):
        ostlight.select(settings(compute=settings()["compute"] | {"engine": "ray"}))


def test_a_rank_does_not_drive_a_cluster(settings, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE=2"):
        ostlight.select(settings(compute=settings()["compute"] | {"engine": "ray"}))
