"""What the recipes for other trainers share: the settings of the target's training, and where an image file lies."""

from __future__ import annotations

import hashlib
import io
import json
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import yaml
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from PIL import Image as PILImage

from ostlight.config.schema import Config
from ostlight.data.decode import decode
from ostlight.data.sample import IMAGE_PLACEHOLDER, ImageRef, Sample, Turn
from ostlight.errors import BadRecord
from ostlight.sharing.card import model_name
from ostlight.sharing.dataset import image_bytes
from ostlight.training.precision import target_compute

NO_MODEL = "MODEL"
IMAGES = "images"
"""Folder of the image files that records name."""
RECORDS = "train.jsonl"
"""In the folder of a trainer that reads files: its records."""
INSTRUCTIONS = ("system", "developer")


class UnsuitableError(Exception):
    """A trainer cannot take the record as it is.

    Args:
        reason: in a few words.
    """


@dataclass(frozen=True)
class TrainingPlan:
    """The target's training as other trainers spell it.

    Attributes:
        config: of the run.
        records: to train on.
        has_images: whether any has images.
    """

    config: Config
    records: int
    has_images: bool

    @property
    def model(self) -> str:
        """The target: its name on the Hub, or that of its folder; ``MODEL`` where the run names none."""
        return model_name(self.config.target.path) if self.config.target.path else NO_MODEL

    @property
    def model_here(self) -> str | None:
        """The target's folder on this machine; ``None`` where ``model`` is a name that is known everywhere."""
        path = self.config.target.path
        return NO_MODEL if path is None else str(Path(path).resolve()) if Path(path).is_dir() else None

    @property
    def model_type(self) -> str:
        """What the model's ``config.json`` calls its architecture; empty where there is no such file here."""
        path = self.config.target.path
        if path is None:
            return ""
        try:
            file = Path(path) / "config.json"
            cached = file if file.is_file() else try_to_load_from_cache(path, "config.json")
            return (
                str(json.loads(Path(cached).read_text()).get("model_type", ""))
                if isinstance(cached, str | Path)
                else ""
            )
        except (OSError, ValueError, HFValidationError):
            return ""

    @property
    def warmup_steps(self) -> int:
        training = self.config.target.training
        steps = training.steps or math.ceil(self.records / training.batch_size * (training.epochs or 1))
        return round(steps * training.warmup)

    @property
    def in_bf16(self) -> bool:
        """Whether the target's passes are in bf16; with ``auto`` too, which takes it on a GPU."""
        return target_compute(self.config).precision in ("auto", "bf16-mixed", "bf16-true")

    @property
    def common(self) -> dict[str, Any]:
        """Settings that go by the names of transformers' ``TrainingArguments``."""
        target, training = self.config.target, self.config.target.training
        length = {"max_steps": training.steps} if training.steps else {"num_train_epochs": training.epochs or 1}
        schedule = "cosine" if training.schedule == "cosine" else "constant_with_warmup"
        return {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": training.batch_size,
            **length,
            "learning_rate": training.lr,
            "lr_scheduler_type": schedule,
            "warmup_steps": self.warmup_steps,
            "weight_decay": training.weight_decay,
            "max_grad_norm": training.clip or 0.0,
            "gradient_checkpointing": target.gradient_checkpointing,
            "bf16": self.in_bf16,
            "seed": self.config.seed,
            "logging_steps": 10,
        }

    @property
    def not_carried_over(self) -> list[str]:
        """Settings of the run that its recipes lack, as sentences."""
        training = self.config.target.training
        lacking = []
        if training.order != "shuffled":
            lacking.append(f"the order of the samples (target.training.order={training.order}): samples are shuffled")
        if training.lr_vision is not None or training.lr_projector is not None:
            lacking.append("learning rates of single parts (lr_vision, lr_projector)")
        if target_compute(self.config).precision == "64-true":
            lacking.append("double precision (64-true): passes are in 32 bits")
        if self.config.dev.path is not None and self.config.target.patience is not None:
            lacking.append("early stopping on the development set (dev.path, target.patience): all steps are taken")
        return lacking


class Trainer(Protocol):
    """What is written for one trainer."""

    name: ClassVar[str]
    reads_files: ClassVar[bool]
    """Whether it reads a file of records of its own, with images as files; or the Parquet files."""

    def __init__(self, plan: TrainingPlan) -> None: ...

    def record(self, sample: Sample) -> dict[str, Any]:
        """The record as its data file holds it, without images.

        Raises:
            UnsuitableError: it cannot take the record.
        """

    def files(self) -> dict[str, str]:
        """Texts of its files, by their names in its folder."""

    @property
    def command(self) -> list[str]:
        """That trains, in the folder of the export."""

    @property
    def model_argument(self) -> str:
        """What comes before the name of another model on the command line."""


@dataclass(frozen=True)
class Recipe:
    """What was written for one trainer.

    Attributes:
        tool: its name.
        records: that it trains on.
        left_out: records that it cannot take, by reason.
        command: that trains, in the folder of the export.
        note: how many records it takes, and which it does not; one line for the log and the card.
    """

    tool: str
    records: int
    command: str
    note: str
    left_out: Counter[str] = field(default_factory=Counter)


class ImageFiles:
    """Image files named by their content, each written once.

    Trainers open a file and convert it to RGB. Where that would show other pixels than the run saw (a photograph that
    its EXIF turns, transparency, 16 bits), the file is a PNG of what it saw.

    Args:
        folder: of the export.

    Attributes:
        converted: images that are such a PNG.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / IMAGES
        self.converted = 0
        self._names: dict[str, str] = {}

    def write(self, sample: Sample) -> list[str]:
        """Writes the images of a record and returns their paths below the export's folder, ``images/NAME``.

        Raises:
            UnsuitableError: one of them cannot be decoded, which a selector that looks at no image does not see.
        """
        return [f"{IMAGES}/{self._name(image, sample)}" for image in sample.images]

    def _name(self, image: ImageRef, sample: Sample) -> str:
        data = image_bytes(image, sample)
        digest = hashlib.sha256(data).hexdigest()[:32]
        if digest not in self._names:
            try:
                shown = _shown_otherwise(data, image)
            except BadRecord as bad:
                raise UnsuitableError("an image that cannot be decoded") from bad
            self._names[digest] = f"{digest}.{_ending(data if shown is None else shown)}"
            self.converted += shown is not None
            self.folder.mkdir(exist_ok=True)
            (self.folder / self._names[digest]).write_bytes(data if shown is None else shown)
        return self._names[digest]


def _shown_otherwise(data: bytes, image: ImageRef) -> bytes | None:
    """A PNG of the image as the run saw it; ``None`` where whoever opens ``data`` sees the same."""
    seen = decode(data, image.where, image.rules)
    try:
        with warnings.catch_warnings(), PILImage.open(io.BytesIO(data)) as opened:
            warnings.simplefilter("ignore")
            plain = opened.convert("RGB")
        if plain.size == seen.size and plain.tobytes() == seen.tobytes():
            return None
    except (OSError, ValueError, PILImage.DecompressionBombError):  # who opens it so sees nothing
        pass
    file = io.BytesIO()
    seen.save(file, "PNG")
    return file.getvalue()


ENDINGS = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpg",
    b"GIF8": "gif",
    b"RIFF": "webp",
    b"BM": "bmp",
    b"qoif": "qoi",
    b"II": "tif",
    b"MM": "tif",
    b"\xff\x4f\xff\x51": "j2k",
    b"\0\0\0\x0cjP": "jp2",
    b"P": "ppm",
}
"""Of file names, by the first bytes of an image."""


def _ending(data: bytes) -> str:
    return next((ending for begin, ending in ENDINGS.items() if data.startswith(begin)), "avif")


def alternating(turns: Sequence[Turn]) -> list[Turn]:
    """The turns up to the last answer that is trained on, instructions (``system``, ``developer``) first.

    Raises:
        UnsuitableError: instructions come later or twice, or the last turns hold images.
    """
    last = max((k for k, turn in enumerate(turns) if turn.trained), default=-1)
    if last < 0:
        raise UnsuitableError("no answer")
    if any(IMAGE_PLACEHOLDER in turn.text for turn in turns[last + 1 :]):
        raise UnsuitableError("images after the last answer")
    if any(turn.role in INSTRUCTIONS for turn in turns[1:]):
        raise UnsuitableError("instructions after the first turn")
    return list(turns[: last + 1])


def refuse_untrained_answers(turns: Sequence[Turn]) -> None:
    """Checks that every answer is trained on, for a trainer that cannot leave one out.

    Raises:
        UnsuitableError: some answer is not.
    """
    if any(turn.role == "assistant" and not turn.trained for turn in turns):
        raise UnsuitableError("an answer that is not trained on, which it cannot leave out")


def refuse_placeholders(sample: Sample, placeholders: Sequence[str]) -> None:
    """Checks that no text holds what a trainer takes for a video or another medium, and no function call an image.

    Raises:
        UnsuitableError: one does.
    """
    calls = [json.dumps(turn.tool_calls, ensure_ascii=False, default=str) for turn in sample.turns]
    for placeholder in placeholders:
        if any(placeholder in text for text in [*calls, *(turn.text for turn in sample.turns)]):
            raise UnsuitableError(f"{placeholder} in a text")
    if any(IMAGE_PLACEHOLDER in text for text in calls):
        raise UnsuitableError(f"{IMAGE_PLACEHOLDER} in a function call")


def call_of(call: Any) -> dict[str, Any]:
    """The name and the arguments of a function call.

    Raises:
        UnsuitableError: the arguments are text that is no JSON object.
    """
    function = call["function"]
    if not isinstance(function["arguments"], dict):
        raise UnsuitableError("arguments of a function call that are no JSON object")
    return {"name": function["name"], "arguments": function["arguments"]}


def yaml_of(comments: Sequence[str], settings: dict[str, Any]) -> str:
    """Settings as YAML below comments."""
    head = "".join(f"# {comment}\n" for comment in comments)
    return head + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120)
