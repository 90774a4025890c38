"""Files of tensors that are whole or absent."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

log = logging.getLogger(__name__)


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


def save_whole(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors as safetensors so that the file appears complete, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(kept, temporary, dict(metadata or {}))
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def load_aligned(file: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file, in memory of torch's own alignment.

    Products of tensors at other addresses, as a mapped file has them, are rounded otherwise: a resumed run's scores
    would differ from an undisturbed one's in the last digit.
    """
    return {name: tensor.clone() for name, tensor in load_file(file, device=str(device)).items()}
