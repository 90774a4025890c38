"""Errors cross process borders whole."""

from __future__ import annotations

import pickle
from pathlib import Path

from ostlight.errors import BadRecord, ConfigError, DataError, ModelError


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
