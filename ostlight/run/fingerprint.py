"""Short hashes of everything a result depends on."""

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

LENGTH = 16

DATA = ("ostlight.data", "ostlight.digitmath")
TRAINING = ("ostlight.data", "ostlight.model", "ostlight.training")
SCORING = (*TRAINING, "ostlight.scoring", "ostlight.utility", "ostlight.gradients", "ostlight_kernels")
"""Packages whose source decides what a stage writes."""


def of_values(values: Any) -> str:
    """Of nested plain data."""
    return _short(json.dumps(values, sort_keys=True, default=str).encode())


def of_folder(path: Path) -> str:
    """Of all files below a folder, by name and content."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:LENGTH]


def of_model(path: str) -> str:
    """Of a local model folder; of the cached commit, for a hub name."""
    if Path(path).is_dir():
        return of_folder(Path(path))
    from transformers import AutoConfig

    commit = getattr(AutoConfig.from_pretrained(path), "_commit_hash", None)
    return _short(f"{path}@{commit}".encode())


@cache
def of_code(*packages: str) -> str:
    """Of the source of the packages a stage runs through, and the versions of what they compute with."""
    digest = hashlib.sha256()
    for package in packages:
        root = Path(inspect.getfile(import_module(package))).parent
        for file in sorted(root.rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    for name in ("torch", "transformers"):
        digest.update(version(name).encode())
    return digest.hexdigest()[:LENGTH]


def of_class(cls: type) -> str:
    """Of the source of the module (for a package: all its files) that defines a class."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        return _short(cls.__qualname__.encode())
    path = Path(file)
    return of_folder(path.parent) if path.name == "__init__.py" else _short(path.read_bytes())


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:LENGTH]
