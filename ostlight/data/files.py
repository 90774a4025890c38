"""The files that a path names: a file, a folder of files, a pattern, or a clone of a data set of the hub."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ostlight.data.formats import HuggingFaceFolder
from ostlight.data.remote import RemotePath, path_of
from ostlight.data.sample import kind_of_file
from ostlight.errors import DataError

log = logging.getLogger(__name__)

SUFFIXES = frozenset({".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".tar"})
NOT_DATA = frozenset({"dataset_info.json", "dataset_infos.json"})
NOT_READ = re.compile(r"(\.(jsonl?|ndjson|csv|tsv|tar)\.(gz|bz2|xz|zst|lz4|zip)|\.(tgz|arrow|feather|orc|xlsx))$", re.I)
"""Names of files that hold records in a form that is not read."""
_CURE_NOT_READ = "unpack compressed files, and write tables as Parquet"
CARD, DATA, TRAIN = "README.md", "data", "train"

_SPLITS = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Splits by the words in names of files and folders, as the hub's own rules have them."""


def files_of(path: str | Path) -> list[Path]:
    """Returns all files that ``path`` names, in a fixed order.

    Of a clone of the hub, these are the files of the ``train`` split, or of the only one there is; the log names the
    splits left out. Which files belong to it is read from the card (``README.md``) or from their names.

    Raises:
        DataError: nothing is there, it cannot be read (of a remote one, with what to set), or there are several splits
            or configurations of which none goes before the others.
    """
    try:
        return _files(path_of(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", path) from error


def _files(path: Path) -> list[Path]:
    if path.is_file() or HuggingFaceFolder.recognizes(path, b""):
        return [path]
    if path.is_dir():
        return _files_in(path)
    if path.exists():
        raise DataError(f"{path} is {kind_of_file(path.stat().st_mode)}; records are read from files", path)
    if isinstance(path, RemotePath):
        matched: list[Path] = [*path.matches()] if glob.has_magic(str(path)) else []
    else:
        matched = [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    if not matched:
        raise DataError(f"{path} does not exist", path)
    return [file for match in matched for file in _files(match)]


def _files_in(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir()))
        raise DataError(f"{folder} holds several splits ({splits}); name one of these folders", folder)
    card = _card(folder)
    if card.get("configs"):
        return _of_split(folder, _described_splits(folder, card["configs"]))
    listed = sorted(folder.iterdir())
    found = [p for p in listed if _is_data(p)]
    if not found and (folder / DATA).is_dir():
        return _of_split(folder, _named_splits(folder, (folder / DATA).rglob("*")))
    if card:
        return _of_split(folder, _named_splits(folder, listed if found else folder.rglob("*")))
    unread = [p for p in listed if NOT_READ.search(p.name)]
    if not found:
        raise _no_data(folder, unread)
    _warn_of_unread(folder, unread)
    return found


def _no_data(folder: Path, unread: Sequence[Path]) -> DataError:
    there = f"; it has {_named(folder, unread)}: {_CURE_NOT_READ}" if unread else ""
    return DataError(f"{folder} holds no file ending in {', '.join(sorted(SUFFIXES))}{there}", folder)


def _warn_of_unread(folder: Path, unread: Sequence[Path]) -> None:
    if unread:
        log.warning(f"{folder}: {len(unread):,} files are not read ({_named(folder, unread)}); {_CURE_NOT_READ}")


def _named(folder: Path, files: Sequence[Path]) -> str:
    return ", ".join(str(file.relative_to(folder)) for file in files[:3])


def _is_data(file: Path) -> bool:
    """Whether the file is one of a pool; hidden ones (macOS writes ``._NAME`` beside each file) are not.

    Raises:
        DataError: it is called like one, and is a link that leads nowhere, a pipe or a device.
    """
    if file.suffix.lower() not in SUFFIXES or file.name in NOT_DATA or file.name.startswith("."):
        return False
    if file.is_file() or file.is_dir():
        return file.is_file()
    if not file.exists():
        raise DataError(f"{file} is a link that leads nowhere, or back to itself; fix or remove it", file)
    raise DataError(f"{file} is {kind_of_file(file.stat().st_mode)}; records are read from files", file)


def _card(folder: Path) -> dict[str, Any]:
    """The settings at the beginning of the data set's card; none where there is no card, or it has none."""
    try:
        text = (folder / CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found = re.match(r"\s*---\s*\n(.*?)\n---\s*(?:\n|$)", text, re.DOTALL)
    try:
        settings = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as error:
        raise DataError(f"{folder / CARD}: its first lines are not YAML: {error}", folder) from error
    return settings if isinstance(settings, dict) else {}


def _described_splits(folder: Path, configs: Any) -> dict[str, list[Path]]:
    """The files of each split, as the card describes them."""
    listed_configs = configs if isinstance(configs, list) else [configs]
    named = {str(c.get("config_name", "default")): c for c in listed_configs if isinstance(c, dict)}
    if not named:
        raise DataError(f"{folder / CARD}: 'configs' is {str(configs)[:60]!r}, no list of configurations", folder)
    default = [name for name, config in named.items() if config.get("default")] or [n for n in named if n == "default"]
    if len(named) != 1 and not default:
        listed = "; ".join(f"{name}: {', '.join(_patterns(c))[:100]}" for name, c in named.items())
        raise DataError(
            f"{folder} holds several configurations ({listed}); name the files of one, as {folder}/PATTERN", folder
        )
    config = named[default[0] if default else next(iter(named))]
    if len(named) > 1:
        log.info(f"{folder}: the configuration {default[0]!r} is read, of {', '.join(named)}")
    splits: dict[str, list[Path]] = {}
    for split, patterns in _entries(config):
        for pattern in patterns:
            _check_inside(folder, pattern)
            try:
                files = sorted(p for p in folder.glob(pattern) if p.is_file())
            except ValueError as error:
                raise DataError(f"{folder / CARD}: {pattern!r} is no pattern of files: {error}", folder) from error
            if not files:
                raise DataError(f"{folder / CARD} names {pattern!r}, and no such file is there; fetch it", folder)
            splits.setdefault(split, []).extend(files)
    data_dir = str(config.get("data_dir", "."))
    _check_inside(folder, data_dir)
    return splits or _named_splits(folder, (folder / data_dir).rglob("*"))


def _check_inside(folder: Path, pattern: str) -> None:
    if pattern.startswith("/") or ".." in Path(pattern).parts:
        raise DataError(f"{folder / CARD}: the pattern {pattern!r} leads out of the folder", folder)


def _entries(config: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Split and patterns of each entry of ``data_files``, which may be a pattern, a list, or a mapping by split."""
    listed = config.get("data_files")
    if isinstance(listed, dict):
        listed = [{"split": split, "path": path} for split, path in listed.items()]
    for entry in listed if isinstance(listed, list) else [listed] if listed else []:
        split, path = (entry.get("split", TRAIN), entry.get("path")) if isinstance(entry, dict) else (TRAIN, entry)
        yield str(split), [str(one) for one in (path if isinstance(path, list) else [path])]


def _patterns(config: dict[str, Any]) -> list[str]:
    return [pattern for _, patterns in _entries(config) for pattern in patterns] or [str(config.get("data_dir", ""))]


def _named_splits(folder: Path, files: Iterable[Path]) -> dict[str, list[Path]]:
    """The files of each split, by the words in their names and in those of their folders.

    Files that name no split are the training split, unless others name it: then they belong to none, as on the hub.

    Raises:
        DataError: there is no file, or only files that are not read name the training split.
    """
    splits: dict[str | None, list[Path]] = {}
    unread: list[Path] = []
    for file in sorted(files):
        parts = file.relative_to(folder).parts
        if any(part.startswith(".") for part in parts):
            continue
        if _is_data(file):
            splits.setdefault(_split_of(parts), []).append(file)
        elif NOT_READ.search(file.name):
            unread.append(file)
    if not splits:
        raise _no_data(folder, unread)
    unnamed = splits.pop(None, [])
    lost = [file for file in unread if _split_of(file.relative_to(folder).parts) == TRAIN]
    if lost and TRAIN not in splits:
        raise DataError(
            f"{folder}: {_named(folder, lost)} of the split {TRAIN!r} is not read; {_CURE_NOT_READ}", folder
        )
    _warn_of_unread(folder, unread)
    if unnamed and TRAIN in splits:
        log.info(f"{folder}: {len(unnamed):,} files name no split and are not read ({_named(folder, unnamed)})")
    elif unnamed:
        splits[TRAIN] = unnamed
    return {split: found for split, found in splits.items() if split is not None}


def _split_of(parts: tuple[str, ...]) -> str | None:
    if parts[0] == DATA and (shard := re.match(r"(.+)-\d{5}-of-\d{5}", parts[-1])):
        return shard[1]
    for part in reversed(parts):
        words = set(re.split(r"[-._ \d]+", part.lower()))
        for split, names in _SPLITS.items():
            if words.intersection(names):
                return split
    return None


def _of_split(folder: Path, splits: dict[str, list[Path]]) -> list[Path]:
    """The files of the ``train`` split, or of the only one."""
    if len(splits) == 1:
        return next(iter(splits.values()))
    others = ", ".join(f"{name} ({files[0].relative_to(folder)} ...)" for name, files in splits.items())
    if TRAIN not in splits:
        raise DataError(f"{folder} holds several splits: {others}; name the files of one, as {folder}/PATTERN", folder)
    log.info(f"{folder}: the split {TRAIN!r} is read, of {others}")
    return splits[TRAIN]
