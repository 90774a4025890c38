"""The stored embeddings, by hand: pooling, invariance, other models, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from _digitmath_tokenizer import build_tokenizer
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    ViTConfig,
    ViTModel,
)

from ostlight.config.load import load_config
from ostlight.data.sample import Sample, Turn
from ostlight.errors import ConfigError, ModelError, SelectorError
from ostlight.models.batch import Batch
from ostlight.pipeline.select import select
from ostlight.selection.registry import create
from ostlight.selection.scores import Scores
from ostlight_selectors.embed import ANCHORS, anchor_embeddings

OPTIONS = [
    {},
    {"layers": [0.5, 1.0], "tokens": "both"},
    {"layers": [1.0], "tokens": "all", "pooling": "weighted_mean"},
    {"tokens": "image", "pooling": "last"},
    {"tokens": "text", "pooling": "weighted_mean"},
    {"states": "attention", "layers": [0.5, 1.0]},
]


def by_hand(model, sample, states="hidden", layers=(0.67,), tokens="both", pooling="mean"):
    """One sample alone, in plain numpy."""
    (single,) = model.batches([sample], 1)
    caught = []
    hooks = [
        module.register_forward_hook(lambda _, given, returned: caught.append(returned[0]))
        for name, module in model.model.named_modules()
        if "language_model" in name and name.endswith("self_attn")
    ]
    with torch.no_grad():
        hidden_by_layer = model.model(**single.inputs, output_hidden_states=True).hidden_states[1:]
    for hook in hooks:
        hook.remove()
    by_layer = hidden_by_layer if states == "hidden" else caught
    is_image = (single.inputs["input_ids"][0] == model.model.config.image_token_id).numpy()
    rows = {"all": np.ones_like(is_image), "image": is_image, "text": ~is_image}
    parts = []
    for share in layers:
        hidden = by_layer[{0.5: 0, 0.67: 0, 1.0: 1}[share]][0].numpy()
        for kind in ["image", "text"] if tokens == "both" else [tokens]:
            chosen = hidden[rows[kind]]
            weights = {"mean": np.ones(len(chosen)), "weighted_mean": np.arange(1.0, len(chosen) + 1)}
            pooled = chosen[-1] if pooling == "last" else np.average(chosen, axis=0, weights=weights[pooling])
            pooled = pooled if states == "hidden" else np.tanh(pooled)
            parts.append(pooled / np.linalg.norm(pooled))
    return np.concatenate(parts) / np.sqrt(len(parts))


def embedded(model, selector_setting, batch, options):
    selector = create("embed", options)
    selector.setup(selector_setting(model))
    return selector.score(batch), selector.embed(batch)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_the_pooled_hidden_states_whatever_the_batch(proxy, samples, selector_setting, options):
    model = proxy("float64")
    pool = sorted(samples("pool")[:6], key=lambda s: -len(s.turns[-1].text))
    batch = model.batches(pool, 100_000)[0]
    columns, exact = embedded(model, selector_setting, batch, options)
    expected = np.stack([by_hand(model, sample, **options) for sample in batch.samples])
    np.testing.assert_allclose(exact, expected, atol=1e-7)
    np.testing.assert_allclose(np.stack(columns["embedding"]), expected, atol=5e-4)
    assert columns["embedding"][0].dtype == np.float16
    assert columns["failure"] == [None] * len(batch)
    _, alone = embedded(model, selector_setting, batch.rows([3]), options)
    np.testing.assert_allclose(alone[0], exact[3], atol=1e-7)


def test_padding_on_the_other_side_changes_nothing(proxy, samples, selector_setting):
    model = proxy("float64")
    for pooling in ("mean", "weighted_mean", "last"):
        options = {"tokens": "all", "pooling": pooling}
        right = embedded(model, selector_setting, model.batches(samples("pool")[:4], 100_000)[0], options)[1]
        model.collator.side = "left"
        left = embedded(model, selector_setting, model.batches(samples("pool")[:4], 100_000)[0], options)[1]
        model.collator.side = "right"
        np.testing.assert_allclose(left, right, atol=1e-7)


def test_anchors_are_stored_in_their_order(proxy, samples, selector_setting):
    model, context = proxy("float64"), None
    context = selector_setting(model)
    create("embed").setup(context)
    stored = np.load(context.folder / ANCHORS)["anchors"]
    expected = np.stack([by_hand(model, anchor) for anchor in samples("anchors")])
    np.testing.assert_allclose(stored, expected, atol=5e-4)
    read = selector_setting(model, dependency_folders={"embed": context.folder})
    np.testing.assert_allclose(anchor_embeddings(read, "embed"), expected, atol=1e-3)
    stored[2] = np.nan
    np.savez(context.folder / ANCHORS, anchors=stored)
    with pytest.raises(SelectorError, match=samples("anchors")[2].id):
        anchor_embeddings(read, "embed")
    (context.folder / ANCHORS).unlink()
    with pytest.raises(SelectorError, match="is missing"):
        anchor_embeddings(read, "embed")


def test_a_sample_without_an_image_has_no_image_embedding_and_a_zero_image_part(proxy, selector_setting):
    model = proxy("float64")
    words = Sample("words", (Turn("user", "1 + 1?"), Turn("assistant", "answer: 2", trained=True)))
    (batch,) = model.batches([words], 1)
    columns, _ = embedded(model, selector_setting, batch, {"tokens": "image"})
    assert columns["failure"][0].reason == "no_image"
    columns, vectors = embedded(model, selector_setting, batch, {"tokens": "both"})
    assert columns["failure"] == [None]
    assert not vectors[0, :96].any()
    assert np.linalg.norm(vectors[0, 96:]) == pytest.approx(1)


def test_a_vector_that_is_zero_or_not_finite_is_rejected(proxy, samples, selector_setting):
    model = proxy()
    selector = create("embed")
    selector.setup(selector_setting(model))
    batch = model.batches(samples("pool")[:3], 100_000)[0]
    vectors = selector.embed(batch)
    vectors[1] = np.nan
    selector.embed = lambda _: vectors
    failures = selector.score(batch)["failure"]
    assert [f and f.reason for f in failures] == [None, "embedding_not_finite", None]


@pytest.fixture
def sentence_model(tmp_path):
    """A random BERT with its tokenizer."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_a_folder_with_a_text_encoder_embeds_the_words(sentence_model, samples, selector_setting):
    selector = create("embed", {"source": str(sentence_model)})
    assert not selector.uses_proxy
    context = selector_setting(None)
    selector.setup(context)
    pool = samples("pool")[:5]
    vectors = selector.embed(Batch(pool))
    np.testing.assert_allclose(selector.embed(Batch(pool[2:3]))[0], vectors[2], atol=1e-5)
    model, tokenizer = BertModel.from_pretrained(sentence_model).eval(), build_tokenizer()
    for sample, vector in zip(pool, vectors, strict=True):
        words = "\n".join(turn.text.replace("<image>", "").strip() for turn in sample.turns)
        with torch.no_grad():
            ids = tokenizer(words, return_tensors="pt", truncation=True, max_length=40)
            mean = model(**ids).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, mean / mean.norm(), atol=1e-5)
    assert np.load(context.folder / ANCHORS)["anchors"].shape == (14, 24)


def test_a_clip_like_folder_embeds_image_and_text(tmp_path, samples, selector_setting):
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(tokenizer), "max_position_embeddings": 32, "eos_token_id": 1}
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config=tower | {"image_size": 8, "patch_size": 4}, projection_dim=12)
    )
    for part in (model, tokenizer, CLIPImageProcessor(size=8, crop_size=8)):
        part.save_pretrained(tmp_path / "clip")
    pool = [*samples("pool")[:3], Sample("words", (Turn("user", "1?"), Turn("assistant", "1", trained=True)))]

    def vectors(tokens, some=pool):
        selector = create("embed", {"source": str(tmp_path / "clip"), "tokens": tokens})
        selector.setup(selector_setting(None, anchors=[], groups=[]))
        return selector.embed(Batch(some))

    both, image, words = vectors("both"), vectors("image"), vectors("text")
    np.testing.assert_allclose(both[:3], np.concatenate([image, words], axis=1)[:3] / np.sqrt(2), atol=1e-6)
    np.testing.assert_allclose(both[3], np.concatenate([np.zeros(12), words[3]]), atol=1e-6)
    assert np.isnan(image[3]).all()
    np.testing.assert_allclose(vectors("image", pool[1:2])[0], image[1], atol=1e-5)


def test_an_image_encoder_embeds_images_by_its_class_token_or_the_mean_over_patches(
    tmp_path, samples, selector_setting
):
    torch.manual_seed(0)
    pool = [*samples("pool")[:3], Sample("words", (Turn("user", "1?"), Turn("assistant", "1", trained=True)))]
    processor = CLIPImageProcessor(size=32, crop_size=32)
    vit = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    for model, pooled in (
        (ViTModel(vit, add_pooling_layer=False), lambda states: states[0, 0]),
        (ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1] * 4, patch_size=2)), _mean_of_map),
    ):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        selector = create("embed", {"source": str(folder), "tokens": "image"})
        selector.setup(selector_setting(None, anchors=[], groups=[]))
        columns = selector.score(Batch(pool))
        assert [f and f.reason for f in columns["failure"]] == [None, None, None, "no_image"]
        for sample, vector in zip(pool[:3], columns["embedding"][:3], strict=True):
            with torch.no_grad():
                pixels = processor(sample.images[0].open(), return_tensors="pt")["pixel_values"]
                expected = pooled(model.eval()(pixel_values=pixels).last_hidden_state)
            np.testing.assert_allclose(vector, expected / expected.norm(), atol=1e-3)
        with pytest.raises(ModelError, match="does not embed text; use tokens=image"):
            create("embed", {"source": str(folder)}).setup(selector_setting(None))


def _mean_of_map(states):
    return states[0].mean((1, 2))


def test_what_is_no_embedding_model_is_refused(tmp_path, sentence_model, selector_setting):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"selector\.options\.source: cannot load"):
        create("embed", {"source": str(tmp_path / "empty")}).setup(selector_setting(None))
    with pytest.raises(ModelError, match="does not embed images; use tokens=text"):
        create("embed", {"source": str(sentence_model), "tokens": "image"}).setup(selector_setting(None))
    with pytest.raises(ConfigError, match="layers is empty"):
        create("embed", {"layers": []})
    with pytest.raises(ConfigError, match="layers"):
        create("embed", {"layers": [1.5]})


def test_another_budget_embeds_nothing_again(settings, tmp_path):
    table = tmp_path / "runs" / "run" / "dependencies" / "embed" / "scores"
    written = []
    for budget in ({"count": 5}, {"fraction": 0.5, "stratify_by": "task"}):
        kept = select(load_config(settings(selector={"name": "rds"}, budget=budget))).kept
        written.append({part: part.stat().st_mtime_ns for part in table.glob("part-*.parquet")})
        assert len(kept) == (5 if "count" in budget else 24)
    assert written[0] == written[1]
    assert Scores.read(table).column("embedding").dtype == np.float16
