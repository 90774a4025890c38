"""Files of tensors that are whole or absent."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ostlight.errors import read_if_whole

log = logging.getLogger(__name__)

CHECKSUM = "checksum"
"""Name in a file's metadata."""


def has_room(folder: Path, needed: int, what: str) -> bool:
    """Whether ``needed`` bytes fit in 90% of the space that is free there; warns that ``what`` is not cached if not."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > 0.9 * free:
        needed_mib, free_mib = needed / 2**20, free / 2**20
        log.warning(
            f"{what} are not cached: they take {needed_mib:,.1f} MiB, and {free_mib:,.1f} MiB are free in {folder}"
        )
        return False
    return True


def beyond_last_used(files: Iterable[Path], count: int) -> list[Path]:
    """All but the ``count`` files last used, by their times."""
    return sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True)[count:]


def save_whole(
    file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, sync: bool = True
) -> None:
    """Writes tensors as safetensors so that the file appears complete, or not at all.

    Args:
        sync: waits until the disk has it; without, a power cut may leave a damaged file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.stem}.{uuid.uuid4().hex[:12]}.tmp{file.suffix}")
    try:
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(kept, temporary, {**(metadata or {}), CHECKSUM: str(_checksum(kept.values()))})
        if sync:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def load_whole(file: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The tensors and the metadata that ``save_whole`` wrote, in memory of torch's own alignment; ``None`` where the
    file is damaged, which a warning says: what it holds is computed again.

    Products of tensors at other addresses, as a mapped file has them, are rounded otherwise: a resumed run's scores
    would differ from an undisturbed one's in the last digit.
    """

    def load() -> tuple[dict[str, Tensor], dict[str, str]]:
        with safe_open(file, framework="pt", device=str(device)) as stored:
            metadata = dict(stored.metadata() or {})
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118 - no mapping
        if metadata.get(CHECKSUM) != str(_checksum(tensors.values())):
            raise ValueError("the tensors are not those that were written")
        return tensors, metadata

    return read_if_whole(file, load, "what it holds is computed again")


def _checksum(tensors: Iterable[Tensor]) -> int:
    """Of all bytes, at the speed of memory: the sum of them as whole numbers, which wraps around."""
    total = 0
    for tensor in tensors:
        as_bytes = tensor.reshape(-1).view(torch.uint8)
        words = len(as_bytes) // 8 * 8
        total += int(as_bytes[:words].view(torch.int64).sum()) + int(as_bytes[words:].sum())
    return total % 2**64
