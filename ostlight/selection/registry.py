"""Where selectors are found: the entry points of every installed package, ours among them."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

import yaml

from ostlight.errors import ConfigError, SelectorError
from ostlight.selection.selector import Selector
from ostlight.suggest import did_you_mean

GROUP = "ostlight.selectors"
OPTIONS = "selector.options"
"""Where a run's selector has its options in the configuration."""

_registered: dict[str, type[Selector]] = {}


@dataclass(frozen=True)
class Found:
    """A selector by name. ``problem`` says why it cannot be used, ``None`` where it can."""

    name: str
    source: str
    cls: type[Selector] | None
    problem: str | None = None


def register(name: str) -> Any:
    """Decorator: makes a selector of the running program known by name, without packaging it.

    Raises:
        SelectorError: the name is taken by another class, or what is decorated is no selector.
    """

    def add(cls: type[Selector]) -> type[Selector]:
        if not (isinstance(cls, type) and issubclass(cls, Selector)):
            raise SelectorError(f"register({name!r}) takes a subclass of ostlight.Selector; got {cls!r}")
        holder = _registered.get(name)
        if holder is not None and (holder.__module__, holder.__qualname__) != (cls.__module__, cls.__qualname__):
            raise SelectorError(
                f"selector name {name!r} is taken by {holder.__module__}.{holder.__qualname__}; choose another"
            )
        _registered[name] = cls
        return cls

    return add


@cache
def _entry_points() -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        others = found.setdefault(point.name, [])
        if point.value not in [o.value for o in others]:
            others.append(point)
    return found


def names() -> list[str]:
    """All known names, sorted."""
    return sorted(_entry_points().keys() | _registered.keys())


def find(name: str) -> Found:
    """One selector by name; a plugin that cannot be imported is described, not raised."""
    if name in _registered:
        return Found(name, f"registered by {_registered[name].__module__}", _registered[name])
    points = _entry_points()[name]
    source = ", ".join(_distribution(p) for p in points)
    if len(points) > 1:
        return Found(name, source, None, f"two packages claim the name {name!r} ({source}); uninstall one")
    try:
        cls = points[0].load()
    except (Exception, SystemExit) as error:  # a stranger's package may fail in any way, and must not take others along
        return Found(name, source, None, f"importing {points[0].value} failed with {type(error).__name__}: {error}")
    if not (isinstance(cls, type) and issubclass(cls, Selector)):
        return Found(name, source, None, f"entry point {points[0].value} is no subclass of ostlight.Selector")
    return Found(name, source, cls)


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def is_registered_here(name: str) -> bool:
    """Whether another process would not find it: it was registered in this one, by no package."""
    return name in _registered


def registered() -> dict[str, type[Selector]]:
    """The selectors that the running program has registered, by name."""
    return dict(_registered)


def load(name: str) -> type[Selector]:
    """The class of that name.

    Raises:
        SelectorError: unknown (lists what is known and the nearest), or known but unusable (says why).
    """
    if name not in names():
        hint = did_you_mean(name.lower().replace("-", "_"), names(), most=3)
        raise SelectorError(
            f"unknown selector {name!r}; {hint}known: {', '.join(names())}. One of your own is found once its package "
            f"is installed with an entry point {name!r} in the group {GROUP!r}, or, from Python, once its class is "
            f"decorated with @ostlight.register({name!r})"
        )
    found = find(name)
    if found.cls is None:
        raise SelectorError(f"selector {name!r} from {found.source} cannot be used: {found.problem}")
    return found.cls


def create(name: str, options: Mapping[str, Any] | None = None, options_at: str = OPTIONS) -> Selector:
    """An instance with validated options.

    Args:
        name: of a registered selector.
        options: its own.
        options_at: where they stand in the configuration, for messages: ``selector.options.of[1].options``.

    Raises:
        SelectorError: as ``load``, or options that the selector refuses.
        ConfigError: unknown or renamed options, wrong types; all problems listed at once.
    """
    from ostlight.config.bind import bind

    try:
        cls = load(name)
        return cls(bind(cls.Options, dict(options or {}), where=OPTIONS, renamed=cls.renamed_options))
    except ConfigError as error:
        raise ConfigError(
            [problem.replace(OPTIONS, options_at, 1) for problem in error.problems], error.source
        ) from error
    except SelectorError as error:
        if options_at == OPTIONS:
            raise
        text, place = str(error), options_at.removesuffix(".options")
        text = text.replace(OPTIONS, options_at, 1) if OPTIONS in text else f"{place}: {text}"
        raise SelectorError(text) from error


class Choice(Protocol):
    """A selector's name with its options, as a list of a configuration holds them."""

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> Mapping[str, Any]: ...


def create_all(choices: Iterable[Choice], where: str) -> list[Selector]:
    """An instance of each selector of a list.

    Args:
        choices: the items of the list.
        where: the list's place in the configuration, for messages: ``benchmark.selectors``.

    Raises:
        SelectorError, ConfigError: as ``create``; the message names the item.
    """
    return [create(choice.name, choice.options, f"{where}[{k}].options") for k, choice in enumerate(choices)]


def describe(cls: type[Selector]) -> str:
    """The class's documentation, and every option with its default, allowed values and meaning."""
    from ostlight.config.reference import settings_reference

    lines = [inspect.getdoc(cls) or "", ""]
    for option in settings_reference(cls.Options):
        lines.append(f"{option.key}: {option.allowed} (default {_yaml(option.default)})")
        lines += textwrap.wrap(option.description, 112, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def option_lines(cls: type[Selector]) -> list[str]:
    """Name, allowed values and default of every option, in YAML; the items of a default list have a line each."""
    from ostlight.config.bind import allowed_values, hints_of

    hints, lines = hints_of(cls.Options), []
    for name, default in vars(cls.Options()).items():
        if isinstance(default, list) and default:
            lines += [f"{name}: {allowed_values(hints[name])}; by default", *(f"  - {_yaml(item)}" for item in default)]
        else:
            lines.append(f"{name}: {allowed_values(hints[name])} (default {_yaml(default)})")
    return lines


def _yaml(value: Any) -> str:
    """One line of YAML, without the settings of a section that are empty."""
    text = yaml.safe_dump(_plain(value), default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.strip().removesuffix("...").strip()


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: v for name, v in dataclasses.asdict(value).items() if v is not None and v != {}}
    return value
