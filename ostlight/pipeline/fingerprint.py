"""Short hashes of what a result depends on."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ostlight.errors import ConfigError, OstlightError

LENGTH = 16

DATA = ("ostlight.data", "ostlight.digitmath")
TRAINING = ("ostlight.data", "ostlight.models", "ostlight.training")
SCORING = (*TRAINING, "ostlight.pipeline.scoring", "ostlight.influence", "ostlight_kernels")
"""Packages whose source decides what a stage writes."""

GRADIENT_VECTORS = "gradient_vectors"
"""Subfolder of a proxy's folder with what scoring computed from it; may be deleted
(``ostlight.influence.gradient_vectors``)."""


def of_values(values: Any) -> str:
    """Returns the fingerprint of nested plain data."""
    return _short(json.dumps(values, sort_keys=True, default=str).encode())


def of_folder(path: Path, without: str = "__pycache__") -> str:
    """Returns the fingerprint of all files below a folder, by name and content, but not of ``without`` folders."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file() and without not in p.relative_to(path).parts):
        digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:LENGTH]


def of_model(path: str | None, where: str) -> str:
    """Returns the fingerprint of a model folder and the base model its adapters name; for a hub name, of the commit.

    Args:
        path: folder or hub name.
        where: the setting's name (``proxy``), for messages.

    Raises:
        ConfigError: no path.
        OstlightError: neither a folder nor a reachable hub name.
    """
    if path is None:
        raise ConfigError([f"{where}.path is missing: name a model folder or hub name"])
    if Path(path).is_dir():
        from ostlight.models.adapters import adapters_base

        files = of_folder(Path(path), without=GRADIENT_VECTORS)
        base = adapters_base(path, where)
        return files if base is None else _short(f"{files} on {of_model(base, where)}".encode())
    from transformers import AutoConfig

    try:
        commit = getattr(AutoConfig.from_pretrained(path), "_commit_hash", None)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise OstlightError(f"{where}.path: cannot load {path!r}, which is not a folder here: {first}") from error
    return _short(f"{path}@{commit}".encode())


@cache
def of_code(*packages: str) -> str:
    """Returns the fingerprint of packages' source and of the versions of the libraries they compute with."""
    digest = hashlib.sha256()
    for package in packages:
        root = Path(inspect.getfile(import_module(package))).parent
        for file in sorted(root.rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    for name in ("torch", "transformers", "peft"):
        digest.update(version(name).encode())
    return digest.hexdigest()[:LENGTH]


def of_class(cls: type) -> str:
    """Returns the fingerprint of the source file that defines a class, or of its package's files."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        return _short(cls.__qualname__.encode())
    path = Path(file)
    return of_folder(path.parent) if path.name == "__init__.py" else _short(path.read_bytes())


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:LENGTH]
