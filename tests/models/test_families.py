"""A folder of any family is a proxy as it lies there, without torchvision and num2words."""

from __future__ import annotations

import io
import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

import ostlight
from ostlight.config.schema import Model
from ostlight.data.sample import IMAGE_PLACEHOLDER, ImageRef, Sample
from ostlight.models.embedding import pooled_states_embedder
from ostlight.models.encoding.encoder import SEQUENCE_KEYS, Encoded
from ostlight.models.losses import IGNORED
from ostlight.models.module import MultimodalModel
from ostlight.selection.scores import Scores

sys.path.insert(0, str(Path(__file__).parent))

import folders

pytestmark = pytest.mark.usefixtures("few_samples_compared")

FAMILIES = list(folders.families.FAMILIES)
Read = Callable[[str], list[Sample]]


def load(folder: Path) -> MultimodalModel:
    return MultimodalModel.load(Model(path=str(folder), dtype="float64"), "proxy")


def text_only(sample: Sample) -> Sample:
    turns = tuple(replace(turn, text=turn.text.replace(IMAGE_PLACEHOLDER, "").strip()) for turn in sample.turns)
    return replace(sample, turns=turns, images=())


def taken_by(family: str, samples: list[Sample]) -> list[Sample]:
    return [text_only(s) for s in samples] if family == "llama" else samples


def plain_loss(folder: Path, sample: Encoded) -> Tensor:
    """transformers' own loss on one sample."""
    kind = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    model = kind.from_pretrained(folder, dtype=torch.float64).eval()
    inputs = {name: value[None] if name in SEQUENCE_KEYS else value for name, value in sample.inputs.items()}
    with torch.no_grad():
        return model(**inputs, labels=sample.labels[None]).loss


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_agree_with_a_plain_forward_of_the_saved_model(family: str, samples: Read, tmp_path: Path) -> None:
    model = load(folders.save(family, tmp_path))
    given = taken_by(family, samples("pool")[:4])
    batch = model.batches([*given, text_only(given[0])], 10_000)[-1]
    assert len(batch) > 1
    expected = torch.stack([plain_loss(tmp_path, sample) for sample in batch.encoded])
    assert torch.allclose(model.losses(batch).double(), expected.double(), rtol=1e-5)
    image = model.encoder.tokenizer.convert_tokens_to_ids(folders.IMAGE_TOKEN.get(family, IMAGE_PLACEHOLDER))
    seen = (batch.inputs["input_ids"] == image).sum(1).tolist()
    assert seen == [folders.TOKENS * len(sample.images) for sample in batch.samples]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_do_not_depend_on_the_batch(family: str, samples: Read, tmp_path: Path) -> None:
    model = load(folders.save(family, tmp_path))
    (batch,) = model.batches(taken_by(family, samples("pool")[:4]), 100_000)
    for states in ("hidden", "attention"):
        embed = pooled_states_embedder(model, states, [0.5, 1.0], "both", "weighted_mean")
        together = embed(batch)
        assert np.isfinite(together).all()
        assert np.abs(together[0] - together[-1]).max() > 1e-4
        alone = np.concatenate([embed(single) for single in batch.singles()])
        np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_selector_scores_with_it(family: str, settings, samples: Read, tmp_path: Path) -> None:
    folder = folders.save(family, tmp_path / "model")
    few = {part: taken_by(family, samples(part)[:count]) for part, count in {"pool": 8, "anchors": 4}.items()}
    parts = {part: {"path": written(some, tmp_path / part)} for part, some in few.items()}
    proxy = {"path": str(folder), "warmup": {"fraction": 0}}
    selection = ostlight.select(settings(**parts, selector={"name": "ost"}, proxy=proxy))
    scores = Scores.read(selection.folder.scores).column("score")
    assert len(scores) == 8
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) == 8


def written(samples: list[Sample], folder: Path) -> str:
    folder.mkdir()
    with (folder / "samples.jsonl").open("w") as lines:
        for sample in samples:
            for k, image in enumerate(sample.images):
                (folder / f"{sample.id}-{k}.png").write_bytes(image.read_bytes())
            messages = [{"role": turn.role, "content": turn.text} for turn in sample.turns]
            images = [f"{sample.id}-{k}.png" for k in range(len(sample.images))]
            lines.write(json.dumps({"id": sample.id, "messages": messages, "images": images} | sample.tags) + "\n")
    return str(folder / "samples.jsonl")


@pytest.mark.parametrize(
    ("family", "legacy"), [*((family, False) for family in folders.VIDEOS), ("qwen2_5_vl", True), ("qwen3_vl", True)]
)
def test_its_video_settings_are_saved_again(family: str, legacy: bool, samples: Read, tmp_path: Path) -> None:
    model = load(folders.save(family, tmp_path / "model", legacy))
    model.save(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved" / "processor_config.json").read_text())
    assert stored["processor_class"] == folders.PROCESSORS[family]
    assert stored["video_processor"].items() >= folders.VIDEOS[family].items()
    assert stored.items() >= folders.SETTINGS.get(family, {}).items()
    again = load(tmp_path / "saved")
    batch = model.batches(samples("pool")[:4], 10_000)[0]
    assert torch.equal(again.losses(batch), model.losses(batch))
    assert torch.equal(again.batches(samples("pool")[:4], 10_000)[0].inputs["input_ids"], batch.inputs["input_ids"])


@pytest.mark.parametrize("family", folders.VIDEOS)
def test_worker_processes_can_be_handed_it(family: str, samples: Read, tmp_path: Path) -> None:
    encoder = load(folders.save(family, tmp_path)).encoder
    sample = samples("pool")[0]
    handed = pickle.loads(pickle.dumps(encoder)).encode(sample)
    assert torch.equal(handed.inputs["pixel_values"], encoder.encode(sample).inputs["pixel_values"])


def test_transformers_is_left_as_it_was(tmp_path: Path) -> None:
    folder = folders.save("qwen2_5_vl", tmp_path)
    load(folder)
    if not transformers.utils.is_torchvision_available():
        with pytest.raises(ImportError, match="Torchvision"):
            transformers.AutoProcessor.from_pretrained(folder)


def test_fewer_pixels_are_fewer_tokens(samples: Read, tmp_path: Path) -> None:
    """Qwen's tokens grow with an image; `max_pixels` holds for every image, and shape and answer stay."""
    folder, sample = folders.save("qwen2_5_vl", tmp_path), samples("pool")[0]
    buffer = io.BytesIO()
    Image.new("RGB", (96, 48), "red").save(buffer, "PNG")
    sample = replace(sample, images=(ImageRef(data=buffer.getvalue()),))
    encoded = []
    for pixels in (None, 24 * 12):
        encoder = MultimodalModel.load(Model(path=str(folder), max_pixels=pixels), "proxy").encoder
        encoder.processor.image_processor.size = {"shortest_edge": 16, "longest_edge": 10_000}
        encoded.append(encoder.encode(sample))
    whole, small = encoded
    rows, columns = small.inputs["image_grid_thw"][0, 1:].tolist()
    assert columns == 2 * rows
    assert len(small) < len(whole)
    assert small.inputs["pixel_values"].shape[0] * 16 == whole.inputs["pixel_values"].shape[0]
    assert whole.labels[whole.labels != IGNORED].tolist() == small.labels[small.labels != IGNORED].tolist()
