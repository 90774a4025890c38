"""Whatever is done in a run folder, in whatever order: it is whole or resumable, or one line says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import run_folder_walk
import yaml
from forks import run_script

from ostlight.config.digitmath import DigitMath
from ostlight.digitmath.build import build

SEEDS, STEPS = 2, 100

TIMEOUT_S = 1800
"""On a busy machine; an idle one takes three minutes for each."""


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_run_folder_is_whole_or_resumable_whatever_happens(settings, tmp_path: Path, seed: int) -> None:
    files = build(DigitMath(pool=16, anchors=4, dev=4, test=4), tmp_path / "data")
    file = tmp_path / "settings.yaml"
    training = {"steps": 3, "batch_size": 2, "lr": 1e-4}
    sections = settings(
        pool={"path": str(files.pool)}, anchors={"path": str(files.anchors)}, test={"path": str(files.test)}
    )
    sections["target"] |= {"training": training, "checkpoint_minutes": 0}
    sections["compute"] |= {"shard_size": 6}
    file.write_text(yaml.safe_dump(sections))
    (tmp_path / "walk").mkdir()
    done = run_script(
        Path(run_folder_walk.__file__), tmp_path / "walk", file, str(seed), str(STEPS), timeout_s=TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout
