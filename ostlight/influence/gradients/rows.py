"""The sample of each row a layer sees: rows are tokens of samples, or images, tiles and patches of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ostlight.errors import InfluenceError
from ostlight.influence.gradients.sink import WAY_OUT
from ostlight.influence.parameters import text_modules, unwrapped
from ostlight.influence.task import Task, tensors_of

TOKENS = ("input_ids", "attention_mask", "inputs_embeds", "decoder_input_ids", "labels")
"""Inputs ``[N, T, ...]`` of a Hugging Face model, with a row for each token of each sample."""
ONE_ROW_PER_IMAGE = frozenset({"llava", "vipllava", "internvl", "paligemma", "gemma3"})
"""``pixel_values [images or tiles, 3, H, W]``, each standing for the same number of placeholder tokens."""
PADDED_IMAGES = frozenset({"idefics2", "idefics3", "smolvlm"})
"""``pixel_values [N, most images, 3, H, W]``; all-zero images are padding, dropped before the vision tower."""
FLAT_PATCHES = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"})
"""``pixel_values [all patches of all images, features]`` with ``image_grid_thw [images, 3]``."""
PADDED_TILES = frozenset({"llava_next", "llava_onevision"})
"""``pixel_values [images, most tiles, 3, H, W]`` with ``image_sizes [images, 2]``, which tell each one's tiles."""
SAME_IMAGES = frozenset({"mllama"})
"""``pixel_values [N, most images, tiles, 3, H, W]``: as many rows for each sample, padding included."""
ONE_ROW_OF_PATCHES = frozenset({"pixtral"})
"""Vision towers that lay the patches of all images in a row: ``pixel_values [images, 3, most H, most W]`` with
``image_sizes [images, 2]`` becomes ``[1, patches, features]``."""


class RowOwners:
    """The sample that owns each row (leading axis) of what the parts of a model see, for one batch.

    Args:
        num_samples: N.
        vision: ``[U]`` owner of each vision unit (an image, a tile or a patch), ``None`` where none are known.
        images: ``[I]`` owner of each image, where the first layers see images and the others patches.
        text_parameters: ids of the parameters that see tokens; ``None`` means all of them.
        why_no_vision: what to say when a vision parameter is used and ``vision`` is ``None``.
        widths: how many tokens each sample has, padding among them (of inputs, of a decoder's); empty where that is not
            known.
    """

    def __init__(
        self,
        num_samples: int,
        vision: Tensor | None = None,
        text_parameters: frozenset[int] | None = None,
        why_no_vision: str = "the batch holds no images",
        images: Tensor | None = None,
        widths: frozenset[int] = frozenset(),
    ) -> None:
        self.num_samples = num_samples
        self._widths = widths
        self._images = images
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

    def _is_whole(self, parameter: nn.Parameter, rows: int) -> bool:
        """Whether that many rows a sample can be all of its tokens: of chosen ones (the answers') samples may have
        different numbers, of which only the sum is known."""
        if rows == 1 or self.num_samples == 1 or not self._widths or not self.sees_text(parameter):
            return True
        return any(rows % width == 0 for width in self._widths)

    def as_rows(self, parameter: nn.Parameter, tensor: Tensor) -> Tensor:
        """The patches of all images in one row ``[1, patches, ...]`` as rows ``[patches, ...]``; others as they are."""
        in_one_row = self._images is not None and not self.sees_text(parameter) and tensor.ndim > 2
        return tensor.squeeze(0) if in_one_row and tensor.shape[0] == 1 and tensor.shape[1] > 1 else tensor

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
                "leave the vision tower out with parameters=blocks, or use estimator=exact or finite_difference"
            )
        if self._images is not None and length == len(self._images) and not self.sees_text(parameter):
            units = self._images
        count = len(units)
        if count and length % count == 0 and self._is_whole(parameter, length // count):
            return units.to(device).repeat_interleave(length // count)
        if length and count % length == 0:
            merged = units.to(device).view(length, -1)
            if bool((merged == merged[:, :1]).all()):
                return merged[:, 0]
        raise InfluenceError(
            f"parameter {name}: it sees {length} rows, which are not the {count} "
            f"{'samples' if self.sees_text(parameter) else 'images or patches'} of the batch; {WAY_OUT}"
        )


class RowMap:
    """Makes the ``RowOwners`` of a batch from the inputs a Hugging Face model is called with."""

    def __init__(self, model: nn.Module) -> None:
        self._config: Any = getattr(unwrapped(model), "config", None)
        self._family = str(getattr(self._config, "model_type", ""))
        self._tower = str(getattr(getattr(self._config, "vision_config", None), "model_type", ""))
        self._num_tiles: Callable[..., int] | None = getattr(
            sys.modules[type(unwrapped(model)).__module__], "image_size_to_num_patches", None
        )
        self._text = frozenset(id(p) for module in text_modules(model) for p in module.parameters())

    def of_batch(self, task: Task, batch: Any) -> RowOwners:
        """The owners for one call of the model, for any task and batch."""
        inputs = task.inputs(batch)
        if "input_ids" in inputs:
            return self.of(inputs, task.images(batch))
        size = task.size(batch)
        ids = [t for t in tensors_of(batch) if t.ndim == 2 and len(t) == size and not t.is_floating_point()]
        return RowOwners(size, widths=frozenset(t.shape[1] for t in ids))

    def of(self, inputs: Mapping[str, Tensor], images: Sequence[int] | None = None) -> RowOwners:
        """The owners for one call of the model.

        Args:
            inputs: the model's arguments; ``input_ids [N, T]`` among them, and the images as the family takes them.
            images: how many each sample has, where that is known; asked only where the tokens do not tell.

        Raises:
            InfluenceError: the images and the placeholder tokens do not fit together.
        """
        vision, of_images, why = None, None, "the batch holds no images"
        num_samples = len(inputs["input_ids"])
        if "pixel_values_videos" in inputs:
            why = "videos are not mapped back to their samples"
        elif inputs.get("pixel_values") is None:
            pass
        elif self._tower in ONE_ROW_OF_PATCHES and "image_sizes" in inputs:
            patches = (inputs["image_sizes"] // self._config.vision_config.patch_size).prod(1).cpu()
            vision = self._by_placeholders(inputs, patches)
            of_images = vision[patches.cumsum(0) - 1]
        elif self._family in ONE_ROW_PER_IMAGE:
            vision = self._by_placeholders(inputs, torch.ones(len(inputs["pixel_values"]), dtype=torch.long))
        elif self._family in PADDED_IMAGES:
            vision = inputs["pixel_values"].flatten(2).ne(0).any(2).nonzero()[:, 0]
        elif self._family in FLAT_PATCHES:
            vision = self._by_placeholders(inputs, inputs["image_grid_thw"].prod(1))
        elif self._family in SAME_IMAGES:
            vision = torch.arange(num_samples)
        elif self._family in PADDED_TILES and self._num_tiles is not None:
            images = [len(inputs["pixel_values"])] if num_samples == 1 else images
            why = "how many images each sample has is not known (Task.images)"
            if images is not None:
                vision = torch.arange(num_samples).repeat_interleave(torch.tensor(images))
                vision = vision.repeat_interleave(self._tiles(inputs))
        else:
            why = f"how the model type {self._family!r} lays out its images is not known"
        # Cross attention sees the images' tokens beside those of the text, as many for each sample.
        names = () if self._family in SAME_IMAGES else TOKENS
        tokens = [inputs[name] for name in names if isinstance(inputs.get(name), Tensor)]
        widths = frozenset(t.shape[1] for t in tokens if t.ndim > 1)
        return RowOwners(num_samples, vision, self._text, why, of_images, widths)

    def _tiles(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """``[I]`` how many tiles the model makes of each image: one where a sample has several (LLaVA-OneVision)."""
        assert self._num_tiles is not None, "asked where it is known"
        grid, side = self._config.image_grid_pinpoints, self._config.vision_config.image_size
        tiles = torch.tensor([self._num_tiles(size.tolist(), grid, side) for size in inputs["image_sizes"]])
        if "batch_num_images" in inputs:
            beside = inputs["batch_num_images"].cpu()
            tiles = torch.where(beside.repeat_interleave(beside) == 1, tiles, 1)
        return tiles

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
