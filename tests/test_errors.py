"""Errors cross process borders whole."""

from __future__ import annotations

import pickle

from ostlight.errors import BadRecord, ConfigError


def test_errors_survive_pickling():
    bad = pickle.loads(pickle.dumps(BadRecord("missing_image", "no such file", "images")))
    assert (bad.reason, bad.detail, bad.field) == ("missing_image", "no such file", "images")
    config = pickle.loads(pickle.dumps(ConfigError(["one", "two"], "x.yaml")))
    assert (config.problems, config.source) == (["one", "two"], "x.yaml")
    assert str(config) == str(ConfigError(["one", "two"], "x.yaml"))
