"""The base checkpoints that are part of the package."""

from __future__ import annotations

from pathlib import Path

from ostlight.errors import ConfigError

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def checkpoint(size: str) -> Path:
    """The folder of a base checkpoint (``proxy``, ``target``, ...), for ``from_pretrained``.

    Raises:
        ConfigError: no checkpoint of that name is part of the package.
    """
    folder = CHECKPOINTS / size
    if not (folder / "config.json").is_file():
        there = ", ".join(sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json")))
        raise ConfigError([f"no base checkpoint {size!r}; there are {there}"], "digitmath")
    return folder
