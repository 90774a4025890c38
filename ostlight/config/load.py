"""From a YAML file and ``key=value`` overrides to a checked ``Config``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ostlight.config.bind import bind
from ostlight.config.budget import Budget
from ostlight.config.read import one_line, parse, read_mapping
from ostlight.config.renamed import RENAMED
from ostlight.config.schema import Config, Training, Variant
from ostlight.errors import ConfigError

ALTERNATIVES = (Budget.alternatives, Training.alternatives)
"""Keys of which a section takes one: an override that names one replaces the others."""

COMMAND_LINE = "command line"
"""Source of overrides, for messages."""


def load_config(source: str | Path | Mapping[str, Any] | Config, *overrides: str) -> Config:
    """A checked configuration.

    Args:
        source: a YAML file, or the same as nested data, or a ``Config``.
        overrides: ``key=value`` with dotted keys; values are read as YAML (``budget.fraction=0.5``).

    Raises:
        ConfigError: no such file, not YAML, or unknown keys, wrong types and values out of bounds, all listed.
    """
    name = str(source) if isinstance(source, str | Path) else "config"
    if isinstance(source, Config):
        values: dict[str, Any] = dataclasses.asdict(source)
    elif isinstance(source, Mapping):
        values = dict(source)
    else:
        values = _read(Path(source))
    for override in overrides:
        _override(values, override)
    try:
        plain = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([str(error).splitlines()[0]], name) from error
    assert isinstance(plain, dict), "a mapping stays a mapping"
    config = bind(Config, {str(key): value for key, value in plain.items()}, source=name, renamed=RENAMED)
    if problems := list(_variant_problems(config)):
        raise ConfigError(problems, name)
    return config


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise ConfigError([f"a folder, not a file; it holds: {_yaml_files(path)}"], str(path))
    if not path.is_file():
        raise ConfigError([f"no such file; the folder holds: {_yaml_files(path.parent)}"], str(path))
    return read_mapping(path)


def _yaml_files(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.glob("*.yaml"))) or "no YAML file"


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    *path, last = key.split(".")
    if not separator or not all((*path, last)):
        raise ConfigError([f"an override is written key=value, as budget.fraction=0.5; got {override!r}"], COMMAND_LINE)
    if not text.strip():
        raise ConfigError([f"{key} has no value; write {key}=null to unset it"], COMMAND_LINE)
    try:
        value = parse(text)
    except yaml.YAMLError as error:
        raise ConfigError([f"{override!r}: the value is not YAML: {one_line(error)}"], COMMAND_LINE) from error
    place = values
    for step in path:
        inner = place.get(step)
        place[step] = dict(inner) if isinstance(inner, Mapping) else {}
        place = place[step]
    for group in ALTERNATIVES:
        if last in group and value is not None:
            for other in group:
                place.pop(other, None)
    place[last] = value


def vary(config: Config, variant: Variant) -> Config:
    """The configuration under one variant; it has no variants itself.

    Raises:
        ConfigError: the overrides make it invalid.
    """
    return load_config(config, "benchmark.variants=[]", *variant.overrides)


def _variant_problems(config: Config) -> Iterator[str]:
    for variant in config.benchmark.variants if config.benchmark else ():
        where = f"benchmark.variants, {variant.label!r}"
        if any(text.startswith("benchmark.variants") for text in variant.overrides):
            yield f"{where}: it may not change benchmark.variants"
            continue
        try:
            vary(config, variant)
        except ConfigError as error:
            yield from (f"{where}: {problem}" for problem in error.problems)
