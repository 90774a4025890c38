"""A model that cannot be loaded is refused in one line that names the setting and the fix."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import transformers

from ostlight.config.schema import Model
from ostlight.digitmath.model import checkpoint
from ostlight.errors import ModelError
from ostlight.models import load
from ostlight.models.module import MultimodalModel

FAILURES = {
    "memory": (MemoryError(), r"out of memory; name a smaller model, or .* with proxy\.dtype=bfloat16"),
    "allocator": (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory; name a"),
    "module": (ModuleNotFoundError("No module named 'timm.layers'", name="timm.layers"), r"; pip install timm$"),
    "package": (ImportError("\nThis needs the Einops library.\nSee its page."), "This needs the Einops library.; inst"),
    "silent": (OSError(), "OSError"),
}


def committed() -> MultimodalModel:
    return MultimodalModel.load(Model(path=str(checkpoint("proxy"))), "proxy")


@pytest.mark.parametrize("what", ["model", "processor"])
@pytest.mark.parametrize(("error", "fix"), FAILURES.values(), ids=list(FAILURES))
def test_a_failure_names_the_path_and_the_fix(
    what: str, error: Exception, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    if what == "model":
        monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", fail)
    else:
        monkeypatch.setattr(load, "load_processor", fail)
    with pytest.raises(ModelError, match=fix) as caught:
        committed()
    assert caught.value.setting == "proxy.path"
    assert what in str(caught.value)
    assert str(checkpoint("proxy")) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_were_cut_are_refused(tmp_path: Path) -> None:
    shutil.copytree(checkpoint("proxy"), tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=str(tmp_path / "cut")) as caught:
        MultimodalModel.load(Model(path=str(tmp_path / "cut")), "proxy")
    assert caught.value.setting == "proxy.path"
