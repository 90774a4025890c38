"""Models without weights and samples as they see them: what the plan of a run counts on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch

from ostlight.config.schema import Compute, Config, Model, Proxy, Target, Training
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, ConfigError, DataError
from ostlight.models.batch import Batch, by_token_budget
from ostlight.models.encoding.encoder import Encoded, Encoder
from ostlight.models.load import load_encoder
from ostlight.models.module import MultimodalModel
from ostlight.models.optimizer import parameter_groups
from ostlight.models.shapes import PassCost, count_pass, made_up_samples, shapes_of, trained_bytes, weight_bytes
from ostlight.pipeline.inputs import open_pool
from ostlight.training.precision import precision_of, target_compute

RECORDS_READ = 100
"""Records that are read and encoded, spread over the pool."""
MOST_BATCHES = 3
"""Batches counted of each kind."""

T = TypeVar("T")
Where = Literal["proxy", "target"]


@dataclass(frozen=True)
class Encodings:
    """Some samples as one model sees them."""

    samples: list[Sample]
    encoded: list[Encoded]

    @property
    def mean_tokens(self) -> float:
        return sum(map(len, self.encoded)) / len(self.encoded)


@dataclass(frozen=True)
class TrainingCost:
    """FLOPs of a sample's training, in the mean, and bytes of the largest micro-batch's activations."""

    flops_per_sample: float
    activations: int


class PlannedModels:
    """The proxy and the target of a run, from shapes alone, each made once.

    Args:
        config: names the files of a built-in pool.
        pool: ``None`` where the plan is made without one.
        ranks: that training and scoring are spread over.
    """

    def __init__(self, config: Config, pool: Pool | None, ranks: int) -> None:
        self.config, self.pool, self.ranks = config, pool, ranks
        self._models: dict[Where, tuple[MultimodalModel, Encodings]] = {}
        self._costs: dict[Where, TrainingCost] = {}
        self._sizes: dict[tuple[str, bool], tuple[int, int]] = {}

    def settings_of(self, where: Where) -> tuple[Proxy | Target, Training]:
        """The model's settings, and those of its training."""
        proxy, target = self.config.proxy, self.config.target
        return (proxy, proxy.warmup.training) if where == "proxy" else (target, target.training)

    def shapes(self, where: Where) -> tuple[MultimodalModel, Encodings]:
        """A model without weights, in the precision of its passes, and samples for it; made once."""
        if where not in self._models:
            self._models[where] = self._made_shapes(where)
        return self._models[where]

    def compute_of(self, where: str) -> Compute:
        """Where it computes, in the precision of its passes."""
        return target_compute(self.config) if where == "target" else self.config.compute

    def _made_shapes(self, where: Where) -> tuple[MultimodalModel, Encodings]:
        settings: Model
        settings, training = self.settings_of(where)
        if settings.path is None:
            raise ConfigError([f"{where}.path is missing: name a model folder or hub name"])
        if precision_of(self.compute_of(where)).startswith("bf16"):
            settings = dataclasses.replace(settings, dtype="bfloat16")
        if self.config.plan.tokens is None:
            encoder = load_encoder(settings, where)
            model = shapes_of(settings, where, encoder, training)
            return model, self.encoded(encoder)
        model = shapes_of(settings, where, None, training)
        given = self.config.plan
        made = made_up_samples(model, self.config.plan.tokens, given.answer_tokens, given.image_tokens, RECORDS_READ)
        return model, Encodings(*made)

    def encoded(self, encoder: Encoder, data: str = "pool", most: int = RECORDS_READ) -> Encodings:
        """Some records of a setting's data, spread over them; none where it names none.

        Raises:
            DataError: none of those can be used.
        """
        pool = self.pool if data == "pool" else open_data(self.config, data)
        found = Encodings([], [])
        if pool is None:
            return found
        positions = range(0, len(pool), max(1, len(pool) // most))[:most]
        first: BadRecord | None = None
        for _, read in pool.read(positions):
            try:
                if isinstance(read, BadRecord):
                    raise read
                found.encoded.append(encoder.encode(read))
                found.samples.append(read)
            except BadRecord as error:
                first = first or error
        if not found.encoded:
            raise DataError(f"{data}: none of the {len(positions)} records read can be used; the first: {first}")
        return found

    def weights(self, settings: Model, where: str) -> tuple[int, int]:
        """Bytes of a rank's weights as they are held, and of those that are trained."""
        key = (where, isinstance(settings, Target) and settings.lora is not None)
        if key not in self._sizes:
            model = shapes_of(settings, where, None)
            shrinks = 2 / _itemsize(settings) if precision_of(self.compute_of(where)) == "bf16-true" else 1
            self._sizes[key] = round(weight_bytes(model) * shrinks), round(trained_bytes(model) * shrinks)
        return self._sizes[key]

    def training_cost(self, where: Where) -> TrainingCost:
        """Of some steps of the proxy's warm-up or the target's training, as a rank takes them."""
        if where not in self._costs:
            model, data = self.shapes(where)
            parameter_groups(model.model, self.settings_of(where)[1])  # refuses rates of parts that are not trained
            size, found, costs, counted = (
                self.settings_of(where)[1].batch_size,
                dict[Any, PassCost](),
                list[PassCost](),
                0,
            )
            for start in range(0, len(data.encoded), size)[:MOST_BATCHES]:
                chosen = list(range(start, min(start + size, len(data.encoded))))[:: self.ranks]
                for batch in self.batches(model, data, chosen, self.config.compute.tokens_per_batch):
                    if batch.shape not in found:
                        found[batch.shape] = count_pass(partial(backward, model, batch), model)
                    costs.append(found[batch.shape])
                    counted += len(batch)
            total = sum(cost.flops for cost in costs)
            self._costs[where] = TrainingCost(total / counted, max(cost.activations for cost in costs))
        return self._costs[where]

    def batches(
        self,
        model: MultimodalModel,
        data: Encodings,
        chosen: Sequence[int],
        tokens_per_batch: int,
        most: int | None = None,
    ) -> list[Batch]:
        """By length, as they are scored and trained on; at most so many of them, evenly spread."""
        groups = by_token_budget([len(data.encoded[k]) for k in chosen], tokens_per_batch)
        rows = [[chosen[k] for k in group] for group in spread(groups, most or len(groups))]
        return [model.collator.batch([data.samples[k] for k in row], [data.encoded[k] for k in row]) for row in rows]


def open_data(config: Config, name: str) -> Pool | None:
    """The records that a setting (``pool``, ``test``, ...) names; ``None`` where it names none."""
    data = getattr(config, name)
    return open_pool(data, name, require_answer=False) if data.path is not None else None


def forward(model: MultimodalModel, batch: Batch) -> None:
    """A pass without gradients."""
    with torch.no_grad():
        model.losses(batch)


def backward(model: MultimodalModel, batch: Batch) -> None:
    """A pass forward and backward."""
    model.losses(batch).mean().backward()


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most so many of them, evenly spread."""
    return list(items) if len(items) <= most else [items[k * len(items) // most] for k in range(most)]


def _itemsize(settings: Model) -> int:
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype.itemsize
