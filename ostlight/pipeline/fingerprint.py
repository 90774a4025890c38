"""Short hashes of what a result depends on."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ostlight.compiled_code import of_compiled
from ostlight.data.file_key import content_key
from ostlight.data.remote import local_model
from ostlight.data.sample import Sample
from ostlight.errors import ConfigError, ModelError
from ostlight.progress import track

LENGTH = 16

DATA = ("ostlight.data", "ostlight.digitmath")
TRAINING = ("ostlight.data", "ostlight.models", "ostlight.training")
SELECTING = ("ostlight.config", "ostlight.selection")
SCORING = (*TRAINING, "ostlight.pipeline.scoring", "ostlight.influence", "ostlight_kernels")
"""Packages whose source decides what a stage writes."""

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "jinja2",
    "peft",
    "lightning",
    "triton",
    "pillow",
    "av",
    "numpy",
    "scipy",
    "scikit-learn",
)
"""Libraries whose version decides what a stage writes: models, chat templates, image decoding, numbers."""

GRADIENT_VECTORS = "gradient_vectors"
"""Subfolder of a proxy's folder with what scoring computed from it; may be deleted
(``ostlight.influence.gradient_vectors``)."""


def of_values(values: Any) -> str:
    """Returns the fingerprint of nested plain data."""
    return _short(json.dumps(values, sort_keys=True, default=str).encode())


def of_folder(path: Path, without: str = "__pycache__") -> str:
    """Returns the fingerprint of all files below a folder, by name and content, but not of ``without`` folders.

    Links are followed, to files and to folders.
    """
    digest = hashlib.sha256()
    for file in track(sorted(_files_below(path, without)), f"fingerprint of {path}", unit="files"):
        digest.update(str(file.relative_to(path)).encode())
        digest.update(bytes.fromhex(content_key(file)))
    return digest.hexdigest()[:LENGTH]


def _files_below(path: Path, without: str) -> Iterator[Path]:
    seen: set[str] = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if name != without]
        yield from (file for file in (Path(folder) / name for name in files) if file.is_file() and file.name != without)


def of_model(path: str | None, where: str) -> str:
    """Returns the fingerprint of a model folder and the base model its adapters name; for a hub name, of the commit.

    Args:
        path: folder or hub name.
        where: the setting's name (``proxy``), for messages.

    Raises:
        ConfigError: no path.
        ModelError: neither a folder nor a reachable hub name.
    """
    from ostlight.models.adapters import base_of
    from ostlight.models.model_path import setting_of

    setting = setting_of(where)
    if path is None:
        raise ConfigError([f"{setting} is missing: name a model folder or hub name"])
    path = local_model(path)
    base = base_of(path, where)
    if Path(path).is_dir():
        files = of_folder(Path(path), without=GRADIENT_VECTORS)
        return files if base is None else _short(f"{files} on {of_model(base, where)}".encode())
    from transformers import AutoConfig

    try:
        commit = getattr(AutoConfig.from_pretrained(path), "_commit_hash", None)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{setting}: cannot load {path!r}, which is not a folder here: {first}", setting) from error
    return _short(f"{path}@{commit}".encode())


@cache
def of_code(*packages: str) -> str:
    """Returns the fingerprint of packages' source; ``package_versions`` names the libraries they compute with."""
    digest = hashlib.sha256()
    for package in packages:
        root = Path(inspect.getfile(import_module(package))).parent
        for file in sorted(root.rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()[:LENGTH]


@cache
def package_versions() -> str:
    """Returns the installed ones of ``PACKAGES`` with their versions, as text that a manifest can show."""
    return ", ".join(f"{name} {found}" for name in PACKAGES if (found := _installed(name)))


def of_computing() -> dict[str, str]:
    """Returns the fingerprints of what turns a batch into numbers: the code of the models, and the libraries."""
    return {"models": of_code("ostlight.models"), "package versions": package_versions()}


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def of_images(samples: Iterable[Sample]) -> str:
    """Returns the fingerprint of the image files that samples name, by content; ``none`` where they name no file.

    A file that is not there counts as such. Images that records hold themselves are part of the file of records.
    """
    digest, count = hashlib.sha256(), 0
    for sample in track(samples, "fingerprint of images", unit="samples"):
        for image in sample.images:
            if image.path is not None:
                count += 1
                digest.update(_content_or_missing(image.path).encode())
    return digest.hexdigest()[:LENGTH] if count else "none"


def _content_or_missing(path: Path) -> str:
    try:
        return content_key(path)
    except OSError:
        return "missing"


def of_class(cls: type) -> str:
    """Returns the fingerprint of the source file that defines a class, or of its package's files; of a class without a
    file, as in a notebook, that of its compiled code and of what this uses from the same module."""
    module = sys.modules.get(cls.__module__)
    path = Path(getattr(module, "__file__", None) or "")
    if not path.is_file():
        return of_values([cls.__qualname__, *of_compiled(cls)])
    return of_folder(path.parent) if path.name == "__init__.py" else _short(path.read_bytes())


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:LENGTH]
