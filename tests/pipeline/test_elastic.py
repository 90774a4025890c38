"""Under torchrun's agent a rank that dies is restarted with all others, and scoring resumes from the shards of all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from asked_selector import Asked
from forks import run_script

import ostlight
from ostlight.selection import registry

pytestmark = pytest.mark.slow

# `torchrun --standalone --nproc-per-node 2 --max-restarts 1` with a function instead of a program, and forks instead of
# new processes. The variable: docs/how-to/multi-gpu.md.
TORCHRUN = """
import os, sys
os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
import ostlight
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from ostlight.selection.registry import register
from asked_selector import Asked

register("asked")(Asked)
ostlight.configure_logging()
verb, config = sys.argv[1:]
dies = os.environ.get
score = Asked.score


def dies_here():
    return (dies("TORCHELASTIC_RESTART_COUNT"), dies("RANK")) == ("0", "1")


def score_and_die(self, batch):
    if dies_here() and self.batches == 2:
        os._exit(3)
    return score(self, batch)


Asked.score = score_and_die
launch = LaunchConfig(1, 1, 2, max_restarts=1, start_method="fork", rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
                      monitor_interval=0.2)
elastic_launch(launch, getattr(ostlight, verb))(config)
"""


def torchrun(verb: str, config: dict[str, Any], folder: Path) -> str:
    (folder / "torchrun.py").write_text(TORCHRUN)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    ended = run_script(folder / "torchrun.py", verb, folder / "config.yaml")
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def test_scoring_resumes_from_the_shards_of_all_ranks(settings, tmp_path: Path):
    compute = settings()["compute"] | {"shard_size": 6}
    selector = {"name": "asked", "options": {"folder": str(tmp_path)}}
    base = settings(compute=compute, selector=selector)
    torchrun("select", base | {"name": "two", "compute": compute | {"devices": 2}}, tmp_path)
    asked = Counter(line.split()[1] for line in (tmp_path / "asked.txt").read_text().splitlines())
    assert len(asked) == 48
    again = sum(count > 1 for count in asked.values())
    assert again <= 2 * 6, "at most the shard that each rank was at"
    registry.register("asked")(Asked)
    try:
        ostlight.select(base | {"name": "one"})
    finally:
        del registry._registered["asked"]
    one, two = (sorted((tmp_path / "runs" / name / "scores").iterdir()) for name in ("one", "two"))
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]
