"""The sample of each row a layer sees: rows are tokens of samples, or images, tiles and patches of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ostlight.errors import InfluenceError
from ostlight.influence.parameters import text_modules, unwrapped
from ostlight.influence.task import Task

ONE_ROW_PER_IMAGE = frozenset({"llava", "vipllava", "internvl"})
"""``pixel_values [images or tiles, 3, H, W]``, each standing for the same number of placeholder tokens."""
PADDED_IMAGES = frozenset({"idefics2", "idefics3", "smolvlm"})
"""``pixel_values [N, most images, 3, H, W]``; all-zero images are padding, dropped before the vision tower."""
FLAT_PATCHES = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl"})
"""``pixel_values [all patches of all images, features]`` with ``image_grid_thw [images, 3]``."""


class RowOwners:
    """The sample that owns each row (leading axis) of what the parts of a model see, for one batch.

    Args:
        num_samples: N.
        vision: ``[U]`` owner of each vision unit (an image, a tile or a patch), ``None`` where none are known.
        text_parameters: ids of the parameters that see tokens; ``None`` means all of them.
        why_no_vision: what to say when a vision parameter is used and ``vision`` is ``None``.
    """

    def __init__(
        self,
        num_samples: int,
        vision: Tensor | None = None,
        text_parameters: frozenset[int] | None = None,
        why_no_vision: str = "the batch holds no images",
    ) -> None:
        self.num_samples = num_samples
        self._vision = vision
        self._text_parameters = text_parameters
        self._why_no_vision = why_no_vision

    def sees_text(self, parameter: nn.Parameter) -> bool:
        return self._text_parameters is None or id(parameter) in self._text_parameters

    def num_units(self, parameter: nn.Parameter) -> int:
        """How many samples, or images and patches, the parameter's layer sees."""
        if self.sees_text(parameter):
            return self.num_samples
        return 0 if self._vision is None else len(self._vision)

    def owners(self, name: str, parameter: nn.Parameter, length: int, device: torch.device) -> Tensor:
        """``[length]`` the sample of each row of a tensor whose leading axis is ``length`` long.

        The rows may be the units themselves, each unit's rows one after another (a flattened ``[N * T, D]``), or
        equal runs of units merged into one row (a patch merger), never across samples.

        Raises:
            InfluenceError: the rows are none of these.
        """
        if self.sees_text(parameter):
            units: Tensor | None = torch.arange(self.num_samples, device=device)
        else:
            units = self._vision
        if units is None:
            raise InfluenceError(
                f"parameter {name}: it sees images, and {self._why_no_vision}; "
                "leave the vision tower out with parameters=blocks, or use estimator=exact"
            )
        count = len(units)
        if count and length % count == 0:
            return units.to(device).repeat_interleave(length // count)
        if length and count % length == 0:
            merged = units.to(device).view(length, -1)
            if bool((merged == merged[:, :1]).all()):
                return merged[:, 0]
        raise InfluenceError(
            f"parameter {name}: it sees {length} rows, which are not the {count} "
            f"{'samples' if self.sees_text(parameter) else 'images or patches'} of the batch; "
            "leave it out of parameters, or use estimator=exact"
        )


class RowMap:
    """Makes the ``RowOwners`` of a batch from the inputs a Hugging Face model is called with."""

    def __init__(self, model: nn.Module) -> None:
        self._config: Any = getattr(unwrapped(model), "config", None)
        self._family = str(getattr(self._config, "model_type", ""))
        self._text = frozenset(id(p) for module in text_modules(model) for p in module.parameters())

    def of_batch(self, task: Task, batch: Any) -> RowOwners:
        """The owners for one call of the model, for any task and batch."""
        inputs = task.inputs(batch)
        return self.of(inputs) if "input_ids" in inputs else RowOwners(task.size(batch))

    def of(self, inputs: Mapping[str, Tensor]) -> RowOwners:
        """The owners for one call of the model.

        Args:
            inputs: the model's arguments; ``input_ids [N, T]`` among them, and the images as the family takes them.

        Raises:
            InfluenceError: the images and the placeholder tokens do not fit together.
        """
        vision, why = None, "the batch holds no images"
        if "pixel_values_videos" in inputs:
            why = "videos are not mapped back to their samples"
        elif inputs.get("pixel_values") is None:
            pass
        elif self._family in ONE_ROW_PER_IMAGE:
            vision = self._by_placeholders(inputs, torch.ones(len(inputs["pixel_values"]), dtype=torch.long))
        elif self._family in PADDED_IMAGES:
            vision = inputs["pixel_values"].flatten(2).ne(0).any(2).nonzero()[:, 0]
        elif self._family in FLAT_PATCHES:
            vision = self._by_placeholders(inputs, inputs["image_grid_thw"].prod(1))
        else:
            why = f"how the model type {self._family!r} lays out its images is not known"
        return RowOwners(len(inputs["input_ids"]), vision, self._text, why)

    def _by_placeholders(self, inputs: Mapping[str, Tensor], units_of_image: Tensor) -> Tensor:
        """Images come in the order of their placeholder tokens, each with tokens in proportion to its units."""
        token = int(self._config.image_token_id)
        tokens_of_sample = inputs["input_ids"].eq(token).sum(1).cpu()
        units = units_of_image.cpu()
        total_tokens, total_units = int(tokens_of_sample.sum()), int(units.sum())
        # In whole numbers: unit u of the batch begins at token u * tokens / units.
        ends = tokens_of_sample.cumsum(0) * total_units
        first = (units.cumsum(0) - units) * total_tokens
        last = units.cumsum(0) * total_tokens
        owner = torch.searchsorted(ends, first, right=True)
        if total_tokens == 0 or bool((ends[owner.clamp_max(len(ends) - 1)] < last).any()):
            raise InfluenceError(
                f"{len(units)} images with {total_units} units do not fit the placeholder tokens "
                f"{tokens_of_sample.tolist()} of the {len(tokens_of_sample)} samples (token id {token}); "
                "check the collation"
            )
        return owner.repeat_interleave(units)
