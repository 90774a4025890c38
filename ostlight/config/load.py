"""From a YAML file and ``key=value`` overrides to a checked ``Config``."""

from __future__ import annotations

import dataclasses
import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ostlight.config.bind import bind
from ostlight.config.read import one_line, parse, read_mapping
from ostlight.config.schema import BASE, ORACLE, PRECISIONS, Config, Variant
from ostlight.errors import ConfigError

T = TypeVar("T")

ALTERNATIVES = (("fraction", "count", "tokens", "threshold"), ("epochs", "steps"))
"""Keys of which one mapping holds one: an override that names one takes the place of the others in the file."""

LEAST = {
    0: ("compute.workers",),
    1: (
        "proxy.max_length",
        "target.max_length",
        "evaluation.max_new_tokens",
        "evaluation.batch_size",
        "compute.tokens_per_batch",
        "compute.shard_size",
        "compute.devices",
        "compute.num_nodes",
    ),
}
"""The least that settings which count something may be."""

WRITTEN = "command line"
"""Where overrides come from, for messages."""


def load_config(source: str | Path | Mapping[str, Any] | Config, *overrides: str) -> Config:
    """A checked configuration.

    Args:
        source: a YAML file, or the same as nested data, or a ``Config``.
        overrides: ``key=value`` with dotted keys; values are read as YAML (``budget.fraction=0.5``).

    Raises:
        ConfigError: file not there or no YAML; or any number of unknown keys, wrong types and values out of range,
            all listed.
    """
    name = str(source) if isinstance(source, str | Path) else "config"
    if isinstance(source, Config):
        values: dict[str, Any] = to_plain(source)
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
    config = bind(Config, plain, source=name)  # type: ignore[arg-type]
    problems = list(_out_of_range(config))
    if problems:
        raise ConfigError(problems, name)
    return config


def to_plain(config: Config) -> dict[str, Any]:
    """Nested plain data that ``load_config`` reads back to an equal ``Config``."""
    return dataclasses.asdict(config)


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
        raise ConfigError([f"an override is written key=value, as budget.fraction=0.5; got {override!r}"], WRITTEN)
    if not text.strip():
        raise ConfigError([f"{key} has no value; write {key}=null to unset it"], WRITTEN)
    try:
        value = parse(text)
    except yaml.YAMLError as error:
        raise ConfigError([f"{override!r}: the value is not YAML: {one_line(error)}"], WRITTEN) from error
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


def _out_of_range(config: Config) -> Iterator[str]:
    yield from config.budget.problems()
    yield from config.proxy.warmup.training.problems("proxy.warmup.training")
    if config.proxy.warmup.training.order != "shuffled":
        yield "proxy.warmup.training.order must be shuffled: the warm-up comes before any score"
    yield from config.target.problems()
    seeds = [config.seed, *(config.benchmark.seeds if config.benchmark else [])]
    if min(seeds) < 0:
        yield f"seeds must be at least 0; got {min(seeds)}"
    if not 0 <= config.proxy.warmup.fraction <= 1:
        yield f"proxy.warmup.fraction must be at least 0 and at most 1; got {config.proxy.warmup.fraction}"
    for least, names in LEAST.items():
        for name in names:
            value = operator.attrgetter(name)(config)
            if value < least:
                yield f"{name} must be at least {least}; got {value}"
    if config.compute.precision not in PRECISIONS:
        yield f"compute.precision must be one of {', '.join(PRECISIONS)}; got {config.compute.precision!r}"
    if config.compute.logger not in ("csv", "tensorboard", "wandb", "none"):
        yield f"compute.logger must be csv, tensorboard, wandb or none; got {config.compute.logger!r}"
    if Path(config.name).name != config.name:
        yield f"name must be a plain folder name; got {config.name!r}"
    if config.digitmath is not None:
        yield from config.digitmath.problems()
    elif config.pool.path is None:
        yield "pool.path is missing: name your data there, or add `digitmath: {}` for the built-in pool"
    if config.benchmark is not None:
        yield from _benchmark_problems(config)


def _benchmark_problems(config: Config) -> Iterator[str]:
    assert config.benchmark is not None
    for budget in config.benchmark.budgets:
        yield from (f"benchmark.{p}" for p in budget.problems())
    for protocol in config.benchmark.protocols:
        if protocol not in ("equal_epochs", "equal_steps"):
            yield f"benchmark.protocols takes equal_epochs and equal_steps; got {protocol!r}"
    for name in ("selectors", "budgets", "seeds", "protocols"):
        if not getattr(config.benchmark, name):
            yield f"benchmark.{name} is empty: name at least one"
    if "equal_epochs" in config.benchmark.protocols and config.target.training.steps is not None:
        yield (
            f"benchmark.protocols: equal_epochs trains for the target's epochs, but target.training.steps="
            f"{config.target.training.steps} fixes the steps; set target.training.epochs instead, or drop equal_epochs"
        )
    shown = [s.shown for s in config.benchmark.selectors]
    for label in _twice(shown):
        yield f"two benchmark.selectors are called {label!r}; give one of them a `label`"
    for label in sorted({BASE, ORACLE} & {*shown}):
        yield f"a benchmark.selector is called {label!r}, which is another row of the table; give it another `label`"
    repeated: dict[str, list[Any]] = {
        "seeds": config.benchmark.seeds,
        "budgets": [b.label for b in config.benchmark.budgets],
        "protocols": config.benchmark.protocols,
    }
    for name, values in repeated.items():
        for value in _twice(values):
            yield f"benchmark.{name} holds {value} twice, and one result would be counted as two; remove one"
    baseline, rivals = config.benchmark.baseline, [*shown, BASE, ORACLE]
    if baseline is not None and baseline not in rivals:
        yield f"benchmark.baseline must be one of {', '.join(rivals)}; got {baseline!r}"
    if config.benchmark.workers is not None and config.benchmark.workers < 1:
        yield f"benchmark.workers must be at least 1; got {config.benchmark.workers}"
    yield from _variant_problems(config)


def _twice(values: Sequence[T]) -> list[T]:
    """Those that are there more than once, each once."""
    return [value for value, count in Counter(values).items() if count > 1]


def _variant_problems(config: Config) -> Iterator[str]:
    assert config.benchmark is not None
    labels = [v.label for v in config.benchmark.variants]
    if "" in labels:
        yield "benchmark.variants: every variant needs a label"
    for label in _twice([x for x in labels if x]):
        yield f"two benchmark.variants are called {label!r}"
    for variant in config.benchmark.variants:
        for text in variant.overrides:
            if text.startswith("benchmark.variants"):
                yield f"benchmark.variants: {variant.label!r} may not change benchmark.variants"
                return
        try:
            vary(config, variant)
        except ConfigError as error:
            yield from (f"benchmark.variants, {variant.label!r}: {problem}" for problem in error.problems)


def vary(config: Config, variant: Variant) -> Config:
    """The configuration under one variant; it has no variants itself.

    Raises:
        ConfigError: overrides that make no sound configuration.
    """
    return load_config(config, "benchmark.variants=[]", *variant.overrides)
