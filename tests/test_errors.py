"""Errors cross process borders whole; what a library raises on a record rejects the record, and no more."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from ostlight.errors import BadRecord, ConfigError, DataError, ModelError, rejecting


def test_errors_survive_pickling():
    bad = pickle.loads(pickle.dumps(BadRecord("missing_image", "no such file", "images")))
    assert (bad.reason, bad.detail, bad.field) == ("missing_image", "no such file", "images")
    config = pickle.loads(pickle.dumps(ConfigError(["one", "two"], "x.yaml")))
    assert (config.problems, config.source) == (["one", "two"], "x.yaml")
    assert str(config) == str(ConfigError(["one", "two"], "x.yaml"))
    data = pickle.loads(pickle.dumps(DataError("gone", "pool.jsonl")))
    assert (str(data), data.path) == ("gone", Path("pool.jsonl"))
    model = pickle.loads(pickle.dumps(ModelError("cannot load", "proxy.path")))
    assert (str(model), model.setting) == ("cannot load", "proxy.path")


@pytest.mark.parametrize("raised", [ValueError("far\n too wide"), RecursionError("deep"), OSError("broken data")])
def test_what_a_library_raises_on_a_record_rejects_it_in_the_librarys_words(raised: Exception):
    with pytest.raises(BadRecord) as caught, rejecting("some_reason", "cannot be read", "images"):
        raise raised
    assert (caught.value.reason, caught.value.field) == ("some_reason", "images")
    assert type(raised).__name__ in caught.value.detail
    assert " ".join(str(raised).split()) in caught.value.detail
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize(
    "raised",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        KeyboardInterrupt(),
        OSError(5, "Input/output error"),
        BadRecord("other", "its own reason"),
        ModelError("no template"),
    ],
)
def test_what_is_no_fault_of_the_record_passes(raised: BaseException):
    with pytest.raises(type(raised)) as caught, rejecting("some_reason", "cannot be read"):
        raise raised
    assert caught.value is raised


def test_a_half_character_in_a_bad_record_is_an_escape() -> None:
    error = BadRecord("bad_link", "member \udcff", "\ud800")
    assert f"{error} {error.detail} {error.field}".encode()
    assert error.detail == "member \\udcff"
