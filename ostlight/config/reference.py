"""The list of all settings, for the configuration reference."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from ostlight.config.bind import allowed_values, dataclass_in, hints_of
from ostlight.config.schema import Config


class Setting(NamedTuple):
    """One row of the reference.

    Attributes:
        key: dotted path; ``[]`` stands for any item of a list.
        default: the value of a configuration that does not name it.
        allowed: allowed values, in words.
        description: from the docstring of the class.
    """

    key: str
    default: Any
    allowed: str
    description: str


def settings_reference(schema: type = Config, prefix: str = "") -> Iterator[Setting]:
    """Every setting of ``schema`` (by default a whole configuration; a selector's ``Options`` works too).

    Args:
        schema: a dataclass whose docstring describes its fields under ``Attributes:``.
        prefix: dotted path to write before every key.
    """
    descriptions = _descriptions(schema)
    for f in dataclasses.fields(schema):
        if f.metadata.get("hidden"):
            continue
        key, hint = f"{prefix}{f.name}", hints_of(schema)[f.name]
        section = dataclass_in(hint)
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if section is None or not dataclasses.is_dataclass(default):
            description = descriptions.get(f.name) or inspect.cleandoc(section.__doc__ or "").partition("\n")[0]
            yield Setting(key, default, allowed_values(hint), description)
        if section is not None:
            yield from settings_reference(section, f"{key}[]." if _has_list(hint) else f"{key}.")


def _has_list(hint: Any) -> bool:
    return list in (typing.get_origin(member) for member in (hint, *typing.get_args(hint)))


def _descriptions(schema: type) -> dict[str, str]:
    """The description of each field in the docstrings of ``schema`` and its bases."""
    found: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        _, _, block = inspect.cleandoc(cls.__dict__.get("__doc__") or "").partition("Attributes:\n")
        indent = len(block) - len(block.lstrip(" "))  # none where the docstring begins with "Attributes:"
        entry = rf"^ {{{indent}}}(\w[\w, ]*): ((?:.|\n {{{indent + 4},}})*)"
        for names, text in re.findall(entry, block, re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found
