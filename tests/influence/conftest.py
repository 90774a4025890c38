from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

import families


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., nn.Module]:
    """``tiny(family)``: a fresh float64 model that came through ``from_pretrained``."""

    def load(family: str, **options: object) -> nn.Module:
        return families.load(family, tmp_path_factory.mktemp(family), **options)

    return load
