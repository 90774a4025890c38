"""``ost`` before anything is loaded: what it holds, what ``auto`` chooses, what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import ostlight
from ostlight.config.schema import Model
from ostlight.digitmath.model import checkpoint
from ostlight.errors import SelectorError
from ostlight.influence.parameters import select_parameters, text_blocks
from ostlight.models.module import MultimodalModel
from ostlight.models.shapes import shapes_of, weight_bytes
from ostlight.selection.planning import ProxyMemory
from ostlight_selectors.ost import OneStepTrain
from ostlight_selectors.ost.memory import fit, held


@pytest.fixture(scope="module")
def proxy() -> ProxyMemory:
    model = shapes_of(Model(path=str(checkpoint("proxy"))), "proxy", None)
    return ProxyMemory(model.model, weight_bytes(model), 14, 1, half=False, ranks=1, free=None, host=None)


def options(**given: Any) -> Any:
    return OneStepTrain.Options(**{"selection": "top", **given})


def chosen(proxy: ProxyMemory, free: int | None, **given: Any) -> tuple[str, str, int | None]:
    made = options(**given)
    fit(made, dataclasses.replace(proxy, free=free))
    return made.parameters, made.vector_storage, made.rank


def needed(proxy: ProxyMemory, **given: Any) -> int:
    """Bytes of a device of which the choice takes nine tenths."""
    made = options(**given)
    memory = held(made, proxy, select_parameters(proxy.model, made.parameters))
    return int((proxy.weights + sum(memory.values())) / 0.9) + 1


def test_what_is_held_is_counted(proxy):
    entries = sum(p.numel() for p in select_parameters(proxy.model, "blocks").values())
    memory = held(options(), proxy, select_parameters(proxy.model, "blocks"))
    assert memory["gradient vectors"] == 33 * 4 * entries
    assert memory["vectors being made"] == 8 * 4 * entries
    assert "factors" not in memory
    half = held(options(vector_storage="bf16"), proxy, select_parameters(proxy.model, "blocks"))
    assert 2 * half["gradient vectors"] == memory["gradient vectors"]
    groups = dataclasses.replace(proxy, groups=7, ranks=4)
    shared = held(options(vector_storage="split"), groups, select_parameters(proxy.model, "blocks"))
    assert 39 * entries <= shared["gradient vectors"] < 1.5 * 39 * entries
    assert held(options(step="kfac"), proxy, select_parameters(proxy.model, "blocks"))["factors"] > 4 * entries


def test_auto_loses_no_more_than_it_must(proxy):
    auto = {"parameters": "auto", "vector_storage": "auto"}
    depth = len(text_blocks(proxy.model))
    assert chosen(proxy, None, **auto) == ("blocks", "full", None)
    assert chosen(proxy, needed(proxy), **auto) == ("blocks", "full", None)
    assert chosen(proxy, needed(proxy) - 10, **auto) == ("blocks", "bf16", None)
    assert chosen(proxy, needed(proxy, vector_storage="bf16") - 10, **auto)[0] == f"last:{depth // 2}"
    assert chosen(proxy, needed(proxy, vector_storage="bf16") - 10, vector_storage="auto") == ("blocks", "bf16", 16)
    least = needed(proxy, parameters="last:1", vector_storage="bf16", rank=8)
    assert chosen(proxy, least, **auto) == ("last:1", "bf16", 8)
    with pytest.raises(SelectorError):
        chosen(proxy, least - 10, **auto)


def test_auto_uses_other_ranks_and_the_machine(proxy):
    ranks = dataclasses.replace(proxy, ranks=4)
    assert chosen(ranks, needed(proxy) - 10, vector_storage="auto") == ("blocks", "split", None)
    host = dataclasses.replace(proxy, host=2**40)
    small = needed(proxy, vector_storage="bf16") - 10
    assert chosen(host, small, vector_storage="auto") == ("blocks", "offload", None)
    assert chosen(dataclasses.replace(proxy, host=1), small, vector_storage="auto") == ("blocks", "bf16", 16)


def test_what_is_set_stays(proxy):
    assert chosen(proxy, None, rank=4, parameters="auto") == ("blocks", "full", 4)
    filtering = {"selection": "filter", "vector_storage": "auto"}
    assert chosen(proxy, None, **filtering) == ("blocks", "full", None)
    assert [p for p in options(random_products=8, parameters="auto").problems() if "random_products" in p]


def test_a_run_that_cannot_fit_is_refused_before_anything_is_loaded(settings, monkeypatch):
    monkeypatch.setattr("ostlight.pipeline.memory.device_memory", lambda accelerator: 2**20)
    monkeypatch.setattr(MultimodalModel, "load", None)
    config = settings(selector={"name": "ost", "options": {"selection": "top"}})
    with pytest.raises(SelectorError) as caught:
        ostlight.select(config)
    assert "vector_storage=auto" in str(caught.value)


def test_a_run_keeps_what_it_chose(settings, tmp_path, monkeypatch, few_samples_compared):
    chosen = {"selection": "top", "estimator": "second_order", "probes": 4, "step_size": 0.01, "vector_storage": "auto"}
    config = settings(selector={"name": "ost", "options": chosen})
    model = shapes_of(Model(path=str(checkpoint("proxy"))), "proxy", None)
    for free in (None, 10 * weight_bytes(model)):
        monkeypatch.setattr("ostlight.pipeline.memory.device_memory", lambda accelerator, free=free: free)
        ostlight.select(config)
        assert "vector_storage: full" in (tmp_path / "runs" / "run" / "config.yaml").read_text()
