"""Models without weights: what a pass over a batch costs and keeps, from shapes alone.

The weights lie on PyTorch's meta device, which computes the shapes of results and no numbers. What comes with a sample
(token ids, masks, sizes of images) is small and stays real, so that code that looks at it runs as it does in a real
pass: the numbers found are those of the code that will run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only
from transformers import PreTrainedModel

from ostlight.config.schema import Model, Target, Training
from ostlight.data.sample import Sample, Turn
from ostlight.errors import ModelError
from ostlight.models.adapters import base_of, quiet_peft
from ostlight.models.batch import Collator
from ostlight.models.cross_attention import keep_samples_apart
from ostlight.models.encoding.encoder import Encoded, Encoder
from ostlight.models.encoding.limits import limits_of
from ostlight.models.flops import FlopCounter
from ostlight.models.load import collator_for, model_class, model_path
from ostlight.models.losses import IGNORED
from ostlight.models.module import MultimodalModel
from ostlight.models.tuning import blocks_of_text, prepared

META = torch.device("meta")
_aten = torch.ops.aten
_INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._unsafe_index.Tensor)


@dataclass(frozen=True)
class PassCost:
    """What some work on a model takes.

    Attributes:
        flops: of matrix products and attention.
        activations: bytes that its forward passes keep for their backward passes, and the largest of these tensors
            twice more, for its gradient and the intermediate result beside it.
    """

    flops: int
    activations: int


class ShapesOnly(TorchDispatchMode):
    """Within, operators with a tensor on the meta device give one there; all others are computed.

    Masks that choose elements count as they are, also where they choose from a meta tensor. Nothing is moved to or from
    the meta device.

    Raises:
        NotImplementedError, RuntimeError: code asks for the value of a result that depends on weights.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        on_meta = any(t.is_meta for t in tree_iter((args, kwargs)) if isinstance(t, Tensor))
        if kwargs.get("device") is not None:
            kwargs["device"] = META if on_meta else _real(kwargs["device"])
        if not on_meta:
            return func(*args, **kwargs)
        if func in _INDEXING:
            args = (args[0], _as_numbers(args[1]), *args[2:])
        args, kwargs = tree_map_only(Tensor, _on_meta, (args, kwargs))
        if func is _aten._grouped_mm.default:
            return _grouped_product(*args, **kwargs)
        return func(*args, **kwargs)


def _real(device: Any) -> torch.device:
    device = torch.device(device)
    return torch.device("cpu") if device.type == "meta" else device


def _as_numbers(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Masks as the numbers of the elements they choose: how many it chooses cannot be read off a mask's shape."""
    numbers: list[Tensor | None] = []
    for index in indices:
        is_mask = index is not None and not index.is_meta and index.dtype in (torch.bool, torch.uint8)
        numbers += list(index.nonzero(as_tuple=True)) if is_mask and index is not None else [index]
    return numbers


def _grouped_product(a: Tensor, b: Tensor, offsets: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """Products of groups of rows with a matrix each (mixtures of experts); PyTorch's own takes bf16 alone."""
    groups = () if (a.ndim, b.ndim) in ((2, 3), (3, 2)) else (len(a) if offsets is None else len(offsets),)
    return a.new_empty(*groups, a.shape[-2], b.shape[-1])


def _on_meta(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)


def count_pass(work: Callable[[], object], model: torch.nn.Module) -> PassCost:
    """The cost of ``work``, which is run on shapes.

    Args:
        work: passes of ``model``.
        model: on the meta device; its weights are no activations.

    Raises:
        ModelError: the work asks for values that only weights can give, or the model refuses what it is given.
    """
    weights = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # a tensor that is kept alive keeps its storage's number its own

    def keep(tensor: Tensor) -> Tensor:
        number = tensor.untyped_storage()._cdata
        if number not in weights:
            kept[number] = tensor
        return tensor

    try:
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            ShapesOnly(),
            FlopCounter() as counter,
        ):
            work()
    except ValueError as error:
        raise ModelError(f"{type(model).__name__} refuses the samples that its cost is counted on: {error}") from error
    except (NotImplementedError, RuntimeError) as error:
        name = type(model).__name__
        raise ModelError(
            f"{name} cannot be counted without its weights: {(str(error).strip() or type(error).__name__)}"
        ) from error
    sizes = [tensor.untyped_storage().nbytes() for tensor in kept.values()]
    return PassCost(int(counter.total), sum(sizes) + 2 * max(sizes, default=0))


def shapes_of(
    settings: Model, where: str, encoder: Encoder | None, training: Training | None = None
) -> MultimodalModel:
    """The model of a folder or hub name on the meta device, from its configuration alone; as ``MultimodalModel.load``.

    Args:
        encoder: of the same folder, which refuses from then on what the model has no place for; ``None`` where there is
            none, and batches are made by hand.

    Raises:
        ModelError: the folder's configuration cannot be read.
    """
    path = model_path(settings, where)
    base = base_of(path, where)
    fused = settings.attention in (None, "flash_attention_2")  # which needs a GPU, and computes what sdpa does
    chosen = {} if fused else {"attn_implementation": settings.attention}
    with model_class(settings, path, where, base) as (auto, config), META:
        model: Any = auto.from_config(config, trust_remote_code=settings.trust_remote_code, **chosen)
    if encoder is not None:
        encoder.limits = limits_of(model)
    dtype = getattr(torch, settings.dtype)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    keep_samples_apart(model)
    if base is not None and not isinstance(settings, Target):  # a target's adapters are merged
        with quiet_peft(), META:
            model = get_peft_model(model, LoraConfig.from_pretrained(path))
    model = model.eval()
    collator = collator_for(model, encoder) if encoder is not None else Collator()
    if isinstance(settings, Target):
        with META:
            model = prepared(model, settings)
    return MultimodalModel(cast(PreTrainedModel, model), cast(Encoder, encoder), collator, training or Training())


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


def gathered_share(model: MultimodalModel) -> float:
    """Share of its weights that a sharded model holds in full in a pass: what is outside of its blocks, and two blocks,
    of which one is gathered while the other computes."""
    blocks = [weight_bytes(block) for block in blocks_of_text(model.model)]
    whole = weight_bytes(model)
    return min(1.0, (whole - sum(blocks) + 2 * max(blocks, default=0)) / whole)


def trained_bytes(model: torch.nn.Module) -> int:
    """Bytes of the parameters that ask for gradients."""
    return sum(p.nbytes for p in model.parameters() if p.requires_grad)


def made_up_samples(
    model: MultimodalModel, tokens: int, answer_tokens: int, image_tokens: int, count: int
) -> tuple[list[Sample], list[Encoded]]:
    """Samples of these lengths for a model without a processor: zeros for pixels, image placeholders before the text.

    Raises:
        ModelError: images for a model of a family whose image layout is not known here.
    """
    config: Any = model.model.config
    inputs = {"input_ids": torch.ones(tokens, dtype=torch.long)}
    if image_tokens:
        inputs |= _made_up_images(config, image_tokens)
        shown = inputs.pop("shown").item()
        inputs["input_ids"][: int(shown)] = config.image_token_id
        if hasattr(model.model.model, "get_rope_index"):
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == config.image_token_id).long()
    labels = torch.full((tokens,), IGNORED)
    labels[-answer_tokens:] = 1
    sample = Sample("made up", (Turn("user", "made up"), Turn("assistant", "made up", trained=True)))
    return [sample] * count, [Encoded(inputs, labels)] * count


def _made_up_images(config: Any, tokens: int) -> dict[str, Tensor]:
    """The image tensors whose embeddings take about so many tokens; ``shown`` is how many they take."""
    vision: Any = getattr(config, "vision_config", None)
    merge = getattr(vision, "spatial_merge_size", None)
    if merge is not None:  # Qwen-VL: one image, as many patches as its size asks for
        side = max(1, round(tokens**0.5))
        grid = torch.tensor([[1, side * merge, max(1, round(tokens / side)) * merge]])
        patches, patch = int(grid.prod()), vision.patch_size
        width = getattr(vision, "in_channels", 3) * vision.temporal_patch_size * patch * patch
        pixels = torch.zeros(patches, width)
        return {"pixel_values": pixels, "image_grid_thw": grid, "shown": torch.tensor(patches // merge**2)}
    if config.model_type == "internvl":
        height, width = vision.image_size
        each = int(height // vision.patch_size[0] * (width // vision.patch_size[1]) * config.downsample_ratio**2)
        tiles = max(1, round(tokens / each))
        return {"pixel_values": torch.zeros(tiles, 3, height, width), "shown": torch.tensor(tiles * each)}
    raise ModelError(
        f"plan.image_tokens: how {config.model_type} lays out images is not known without its processor; leave "
        "plan.tokens out and name a pool, or set plan.image_tokens=0"
    )
