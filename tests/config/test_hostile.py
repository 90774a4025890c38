"""Configurations that nobody means, refused at once and by name."""

from __future__ import annotations

import time

import pytest

from ostlight.config.load import load_config
from ostlight.config.read import parse, read_mapping
from ostlight.config.schema import is_folder_name
from ostlight.errors import ConfigError

POOL = "pool: {path: x}\n"

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "more than 100,000 values"),
        ("name: &a [*a]\n", "an alias holds itself|nested too deeply"),
        ("name: " + "[" * 5000 + "]" * 5000, "nested too deeply|not YAML"),
        (POOL + "proxy: {warmup: {training: {batch_size: 1e9}}}", "batch_size must be a whole number, at least 1"),
        (POOL + "proxy: {warmup: {training: {batch_size: 10000000000}}}", "at most 1,000,000,000; got 10000000000"),
        (POOL + "seed: 18446744073709551616", "seed must be .*at most 9,223,372,036,854,775,807"),
        (POOL + "seed: -1", "seed must be"),
        (POOL + "budget: {fraction: .nan}", "budget.fraction must be"),
        (POOL + "budget: {fraction: .inf}", "budget.fraction must be"),
        (POOL + "target: {training: {lr: .inf}}", "lr must be"),
        (POOL + "compute: {devices: 100000}", "devices must be a whole number, at least 1 and at most 1024"),
        (POOL + "benchmark: {workers: 1000000}", "workers must be"),
        (POOL + "name: .", "name must be a plain folder name; got '.'"),
        (POOL + "name: ..", "name must be a plain folder name; got '..'"),
        (POOL + "name: ''", "name must be a plain folder name; got ''"),
        (POOL + 'name: "a\\0b"', "name must be a plain folder name"),
        (POOL + 'name: "a\\e[31m"', "name must be a plain folder name"),
        (POOL + "name: a/b", "name must be a plain folder name"),
        (POOL + "name: " + "x" * 300, "name must be a plain folder name"),
    ],
)
def test_refused_at_once(text: str, says: str, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    began = time.process_time()
    with pytest.raises(ConfigError, match=says):
        load_config(file)
    assert time.process_time() - began < 5


def test_overrides_are_held_to_the_same(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(POOL)
    with pytest.raises(ConfigError, match="nested too deeply|not YAML"):
        load_config(file, "name=" + "[" * 5000)
    assert load_config(file, f"seed={2**63 - 1}").seed == 2**63 - 1


def test_aliases_are_fine_in_reason(tmp_path):
    assert parse("a: &a {x: 1}\nb: *a") == {"a": {"x": 1}, "b": {"x": 1}}
    file = tmp_path / "a.yaml"
    file.write_text("a: [" + ", ".join("1" for _ in range(5000)) + "]")
    assert len(read_mapping(file)["a"]) == 5000


@pytest.mark.parametrize("name", ["run", "ost, 20%", "köln-3", "a.b", ".hidden", "名"])
def test_names_of_folders(name: str):
    assert is_folder_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", " a", "a\n", "a\x00", "\u202eabc", "x" * 201])
def test_no_names_of_folders(name: str):
    assert not is_folder_name(name)
