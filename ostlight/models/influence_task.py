"""The samples and models of this project as ``ostlight.influence`` takes them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from torch import Tensor, nn

from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, SelectorError
from ostlight.influence.anchors import Anchors
from ostlight.influence.task import Task, digest_of
from ostlight.models.batch import Batch
from ostlight.models.logits import answer_logits
from ostlight.models.losses import IGNORED
from ostlight.models.module import MultimodalModel
from ostlight.models.vision.features import VisionFeatures

log = logging.getLogger(__name__)


class SampleTask(Task):
    """``Batch`` and the Hugging Face model inside a ``MultimodalModel``."""

    def logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        return answer_logits(model, batch)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        return batch.inputs

    def size(self, batch: Batch) -> int:
        return len(batch)

    def images(self, batch: Batch) -> list[int]:
        return [len(encoded.inputs.get("image_sizes", ())) for encoded in batch.encoded]

    def singles(self, batch: Batch) -> list[Batch]:
        return list(batch.singles())

    def together(self, singles: Sequence[Batch]) -> Batch:
        return Batch.together(singles)

    def shapes(self, single: Batch) -> dict[str, tuple[int, ...]]:
        (encoded,) = single.encoded
        answers = (encoded.labels != IGNORED).nonzero()[:, 0].tolist()  # the head sees these alone
        return {**{key: tuple(part.shape) for key, part in encoded.inputs.items()}, "answers": tuple(answers)}

    def ids(self, batch: Batch) -> list[str]:
        return [sample.id for sample in batch.samples]

    def digests(self, batch: Batch) -> list[str]:
        return [digest_of({**encoded.inputs, "labels": encoded.labels}) for encoded in batch.encoded]


def make_anchors(
    model: MultimodalModel, samples: Sequence[Sample], groups: Sequence[str], tokens_per_batch: int
) -> Anchors:
    """The anchors, batched by length for one model. A warning names groups of one anchor, unless all are.

    Raises:
        SelectorError: an anchor cannot be encoded: anchors are trusted, so none is rejected.
    """
    counts = Counter(groups)
    single = sorted(group for group, count in counts.items() if count == 1)
    if 0 < len(single) < len(counts):
        log.warning(
            f"anchors.group: a single anchor is in {', '.join(map(repr, single[:10]))}; one sample says little about a "
            "group: add anchors, or merge the group with another"
        )
    try:
        batches = model.batches(samples, tokens_per_batch)
    except BadRecord as error:
        raise SelectorError(f"an anchor cannot be used: {error}; fix or remove it in the anchors file") from error
    for batch in batches:
        batch.features = VisionFeatures()  # each is run hundreds of times
    number = {id(sample): k for k, sample in enumerate(samples)}
    indices = [[number[id(sample)] for sample in batch.samples] for batch in batches]
    return Anchors(batches, SampleTask(), list(groups), indices, [sample.id for sample in samples])
