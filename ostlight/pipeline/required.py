"""What a selector needs of the configuration and of the anchors, decided before any work."""

from __future__ import annotations

from collections.abc import Iterator

from ostlight.config.schema import Config
from ostlight.errors import ConfigError, SelectorError
from ostlight.pipeline.inputs import LoadedAnchors
from ostlight.selection.context import no_anchors
from ostlight.selection.registry import create
from ostlight.selection.selector import Selector


def missing_settings(config: Config, selector: Selector) -> Iterator[str]:
    """What the selector, or one that it depends on, needs and the configuration does not name; one sentence each."""
    if config.digitmath is not None:
        return
    needed = [(config.selector.name, selector)]
    needed += [(choice.name, create(choice.name, choice.options)) for choice in selector.dependencies()]
    if config.anchors.path is None and (name := next((n for n, one in needed if one.needs_anchors), None)):
        yield str(no_anchors(name))
    if config.proxy.path is None and (name := next((n for n, one in needed if one.uses_proxy), None)):
        yield f"proxy.path is missing: selector {name!r} scores with this model; name its folder or hub name"


def refuse_missing_settings(config: Config, selector: Selector) -> None:
    """Raises:
    SelectorError: no anchors, for a selector that needs them; says what else is missing too.
    ConfigError: no proxy.
    """
    problems = list(missing_settings(config, selector))
    if problems and problems[0].startswith("proxy.path"):
        raise ConfigError(problems)
    if problems:
        raise SelectorError("; ".join(problems))


def refuse_unsuited_anchors(anchors: LoadedAnchors, name: str, selector: Selector) -> None:
    """Raises:
    SelectorError: no anchors, or none that serve the options, for a selector called ``name`` that needs them.
    """
    if selector.needs_anchors and not anchors.samples:
        raise no_anchors(name)
    try:
        selector.check_anchors(anchors.groups)
    except SelectorError as error:
        raise SelectorError(f"selector {name!r}: {error}") from error
