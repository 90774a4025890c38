"""From a YAML file and ``key=value`` overrides to a checked ``Config``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ostlight.config.bind import alternatives_at, bind, takes_only_text
from ostlight.config.overrides import Override, blamed, override_texts, split_override
from ostlight.config.read import read_mapping
from ostlight.config.renamed import RENAMED
from ostlight.config.schema import Config, Variant
from ostlight.errors import UNKNOWN_FILE, ConfigError
from ostlight.redact import remember, secrets

Source = str | Path | Mapping[str, Any] | Config
"""A YAML file, the same as nested data, or a ``Config``."""


def load_config(source: Source, *overrides: Override) -> Config:
    """A checked configuration.

    Args:
        source: a YAML file, or the same as nested data, or a ``Config``.
        overrides: ``key=value`` with dotted keys, values read as YAML (``budget.fraction=0.5``); or a mapping, nested
            or with dotted keys; or a list of texts. A later one wins. What looks like a number is text where the
            setting takes only text (``name=2026``).

    Raises:
        ConfigError: no such file, not YAML, or unknown keys, wrong types and values out of bounds, all listed; the
            source is the override where it makes the problem.
    """
    texts = override_texts(overrides)
    try:
        return _load(source, texts)
    except ConfigError as error:
        if not texts or error.source != _name(source):
            raise
        raise blamed(error.problems, error.source, texts, lambda: _problems_of(source)) from error


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else UNKNOWN_FILE


def _problems_of(source: Source) -> list[str]:
    try:
        _load(source, ())
    except ConfigError as error:
        return error.problems
    return []


def _load(source: Source, overrides: Sequence[str]) -> Config:
    name = _name(source)
    if isinstance(source, Config):
        values = as_written(source)
    elif isinstance(source, Mapping):
        values = {key: value for key, value in source.items() if key != "written"}  # of dataclasses.asdict
    else:
        values = _read(Path(source))
    for override in overrides:
        _override(values, override)
    try:
        plain = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([str(error).splitlines()[0]], name) from error
    assert isinstance(plain, dict), "a mapping stays a mapping"
    if "written" in plain:
        raise ConfigError(["unknown key 'written'"], name)
    config = bind(Config, {str(key): value for key, value in plain.items()}, source=name, renamed=RENAMED)
    config.written = dict(_interpolations(values, plain))
    if problems := list(_variant_problems(config)):
        raise ConfigError(problems, name)
    return config


def as_written(config: Config) -> dict[str, Any]:
    """The configuration as nested data that ``load_config`` reads: what resolvers stand for (``${oc.env:KEY}``) as it
    was written, so that no key is stored; other text with ``${`` in it so that it stands for itself."""
    values = dataclasses.asdict(config)
    del values["written"]
    names = {value: name for value, name in secrets().items()}

    def walk(value: Any, path: str) -> Any:
        text, resolved = config.written.get(path, (None, None))
        if text is not None and value == resolved:
            return text
        if isinstance(value, dict):
            return {key: walk(inner, f"{path}.{key}") for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [walk(inner, f"{path}.{k}") for k, inner in enumerate(value)]
        if isinstance(value, str) and value in names:
            return f"${{oc.env:{names[value]}}}"
        return value.replace("${", "\\${") if isinstance(value, str) else value

    return {key: walk(value, key) for key, value in values.items()}


def _interpolations(values: Any, resolved: Any, path: str = "") -> Iterator[tuple[str, tuple[str, Any]]]:
    """Path, text and value of everything that a resolver stands for. Variables that it reads may hold keys."""
    if isinstance(values, Mapping) and isinstance(resolved, Mapping):
        for key, value in values.items():
            yield from _interpolations(value, resolved.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(values, list | tuple) and isinstance(resolved, list):
        for k, (value, inner) in enumerate(zip(values, resolved, strict=True)):
            yield from _interpolations(value, inner, f"{path}.{k}")
    elif isinstance(values, str) and "${" in values:
        for variable in _ENVIRONMENT.findall(values):
            remember(variable)
        yield path, (values, resolved)


_ENVIRONMENT = re.compile(r"oc\.env:\s*['\"]?([A-Za-z_][A-Za-z0-9_]*)")


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise ConfigError([f"a folder, not a file; it holds: {_yaml_files(path)}"], str(path))
    if not path.is_file():
        raise ConfigError([f"no such file; the folder holds: {_yaml_files(path.parent)}"], str(path))
    return read_mapping(path)


def _yaml_files(folder: Path) -> str:
    return ", ".join(sorted(p.name for p in folder.glob("*.yaml"))) or "no YAML file"


def _override(values: dict[str, Any], override: str) -> None:
    (*path, last), value = split_override(override)
    if not isinstance(value, str | list | dict | None) and takes_only_text(Config, (*path, last)):
        value = override.partition("=")[2].strip()  # a shell takes the quotes away that a number in a file needs
    place = values
    for step in path:
        inner = place.get(step)
        place[step] = dict(inner) if isinstance(inner, Mapping) else {}
        place = place[step]
    alternatives = alternatives_at(Config, path)
    if last in alternatives and value is not None:
        for other in alternatives:
            place.pop(other, None)
    place[last] = value


def vary(config: Config, variant: Variant) -> Config:
    """The configuration under one variant; it has no variants itself.

    Raises:
        ConfigError: the overrides make it invalid.
    """
    return _load(config, ("benchmark.variants=[]", *variant.overrides))


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
