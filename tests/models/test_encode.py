"""Labels are on the answers and nowhere else, and what the length limit cuts is counted or rejected."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from ostlight.data.sample import ImageRef, Sample, Turn
from ostlight.errors import BadRecord
from ostlight.models.encoding.encoder import within
from ostlight.models.losses import IGNORED


def answer_text(model, encoded) -> str:
    kept = encoded.labels[encoded.labels != IGNORED]
    return model.encoder.tokenizer.decode(kept, skip_special_tokens=True)


def test_labels_are_the_answer(proxy, samples):
    model = proxy("float32")
    for sample in samples("pool")[:14]:
        encoded = model.encoder.encode(sample)
        expected = model.encoder.tokenizer.decode(
            model.encoder.tokenizer(sample.answer)["input_ids"], skip_special_tokens=True
        )
        assert answer_text(model, encoded).strip() == expected.strip()
        last = encoded.labels[-2:].tolist()
        assert any(i != IGNORED for i in last), "the end of the answer is trained on too"


def several_turns(sample: Sample) -> Sample:
    """Two questions with an image each, an answer behind each."""
    image = sample.images[0]
    question, answer = sample.turns
    return replace(sample, turns=(question, answer, question, answer), images=(image, image))


def test_several_turns_with_images_between(proxy, samples):
    model = proxy("float32")
    for sample in samples("anchors")[:4]:
        one, two = model.encoder.encode(sample), model.encoder.encode(several_turns(sample))
        wanted = one.labels[one.labels != IGNORED].tolist()
        assert two.labels[two.labels != IGNORED].tolist() == wanted * 2
        assert two.inputs["pixel_values"].shape[0] == 2


def test_an_untrained_turn_gets_no_label(proxy, samples):
    model = proxy("float32")
    sample = several_turns(samples("anchors")[0])
    muted = replace(sample, turns=(sample.turns[0], replace(sample.turns[1], trained=False), *sample.turns[2:]))
    whole, half = model.encoder.encode(sample), model.encoder.encode(muted)
    assert (half.labels != IGNORED).sum() * 2 == (whole.labels != IGNORED).sum()


def test_text_only_samples_go_through_a_vision_model(proxy, samples):
    model = proxy("float32")
    with_image = samples("anchors")[0]
    question = with_image.turns[0].text.replace("<image>", "").strip()
    sample = replace(with_image, turns=(Turn("user", question), with_image.turns[1]), images=())
    encoded = model.encoder.encode(sample)
    assert "pixel_values" not in encoded.inputs
    both = model.collator.batch([sample, with_image], [encoded, model.encoder.encode(with_image)])
    assert model.losses(both).isfinite().all()


def test_a_cut_answer_is_flagged(proxy, samples):
    model = proxy("float32")
    sample = samples("pool")[0]
    whole = model.encoder.encode(sample)
    model.encoder.max_length = len(whole) - 2
    cut = model.encoder.encode(sample)
    assert cut.answer_cut
    assert not whole.answer_cut
    assert len(cut) == len(whole) - 2


def test_a_sample_without_any_of_its_answer_left_is_rejected(proxy, samples):
    model = proxy("float32")
    sample = samples("pool")[0]
    encoded = model.encoder.encode(sample)
    model.encoder.max_length = int((encoded.labels != IGNORED).nonzero()[0])
    with pytest.raises(BadRecord, match="max_length") as caught:
        model.encoder.encode(sample)
    assert (caught.value.reason, caught.value.field) == ("all_masked", "turns")


def test_a_cut_through_an_image_is_rejected(proxy, samples):
    model = proxy("float32")
    model.encoder.max_length = 3
    with pytest.raises(BadRecord, match="max_length") as caught:
        model.encoder.encode(samples("pool")[0])
    assert (caught.value.reason, caught.value.field) == ("image_cut", "images")


def test_a_corrupt_image_is_rejected(proxy, samples):
    model = proxy("float32")
    broken = replace(samples("pool")[0], images=(ImageRef(data=b"no image"),))
    with pytest.raises(BadRecord) as caught:
        model.encoder.encode(broken)
    assert (caught.value.reason, caught.value.field) == ("corrupt_image", "images")


@pytest.mark.parametrize(
    ("size", "most"), [((100, 50), 200), ((1, 1000), 10), ((1000, 1), 10), ((7, 3), 21), ((3, 3), 1)]
)
def test_an_image_within_a_number_of_pixels_keeps_its_shape(size, most):
    image = Image.new("RGB", size)
    small = within(image, most)
    width, height = small.size
    assert 1 <= width * height <= most
    assert (small is image) == (size[0] * size[1] <= most)
    if size == (100, 50):
        assert (width, height) == (20, 10)
    assert within(image, None) is image
