"""What most tests share: a small pool, and the committed proxy as a model to test with."""

from __future__ import annotations

import os

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ostlight.data.sample import Sample
    from ostlight.digitmath.build import Files
    from ostlight.models.module import MultimodalModel


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The models here are too small for two, and threads that wait for each other slow a busy machine down."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def few_samples_compared() -> Iterator[None]:
    """`ost` compares its estimate with `exact` on 4 samples instead of 16, which takes most of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ostlight_selectors.ost.sample_count", lambda records: 4)
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A DigitMath set of 48 pool records, 14 anchors, 14 development and 21 test questions."""
    from ostlight.config.digitmath import DigitMath
    from ostlight.digitmath.build import build

    return build(DigitMath(pool=48, anchors=14, dev=14, test=21), tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def samples(digits: Files) -> Callable[[str], list[Sample]]:
    """All samples of one part (``pool``, ``anchors``, ``dev``, ``test``)."""
    from ostlight.data.pool import Pool
    from ostlight.data.sample import Sample

    def read(part: str) -> list[Sample]:
        pool = Pool.open(getattr(digits, part))
        return [s for _, s in pool.read(range(len(pool))) if isinstance(s, Sample)]

    return read


@pytest.fixture
def proxy() -> Callable[..., MultimodalModel]:
    """A fresh copy of the committed proxy, in the given dtype."""
    from ostlight.config.schema import Model
    from ostlight.digitmath.model import checkpoint
    from ostlight.models.module import MultimodalModel

    def load(dtype: str = "float64", **settings: Any) -> MultimodalModel:
        return MultimodalModel.load(Model(path=str(checkpoint("proxy")), dtype=dtype, **settings), "proxy")

    return load


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What ostlight logged since the last call, one message a line."""
    caplog.set_level("INFO", logger="ostlight")

    def since() -> str:
        messages = [r.getMessage() for r in caplog.records if r.name.startswith("ostlight")]
        caplog.clear()
        return "".join(f"{message}\n" for message in messages)

    return since


@pytest.fixture
def settings(digits: Files, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Plain configuration data of a small run in ``tmp_path``; keyword arguments replace whole sections."""

    def make(**sections: Any) -> dict[str, Any]:
        from ostlight.digitmath.model import checkpoint

        base: dict[str, Any] = {
            "name": "run",
            "folder": str(tmp_path / "runs"),
            "pool": {"path": str(digits.pool)},
            "anchors": {"path": str(digits.anchors)},
            "test": {"path": str(digits.test)},
            "proxy": {"path": str(checkpoint("proxy")), "warmup": {"fraction": 0}},
            "target": {"path": str(checkpoint("proxy")), "training": {"steps": 3, "batch_size": 4, "lr": 1e-4}},
            "selector": {"name": "random"},
            "evaluation": {"marker": "answer", "by": "task", "max_new_tokens": 16},
            "compute": {"shard_size": 20, "progress": False, "logger": "none", "accelerator": "cpu"},
        }
        return base | sections

    return make
