"""How losses and predicted tokens come out of a batch: all that the library asks about a user's own objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostlight.compiled_code import of_compiled
from ostlight.errors import InfluenceError

IGNORED = -100
"""Label of a position that takes no part in the loss."""


def answer_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over each sample's labelled positions: ``l_i`` of arXiv 2605.07488.

    Args:
        logits: ``[N, T, V]``.
        labels: ``[N, T]`` the label of each position, ``IGNORED`` where there is none.

    Returns:
        ``[N]`` losses in nats, fp32 (fp64 for fp64 logits). NaN for a sample without a label: an empty mean is no
        number. A sample's loss does not depend on the others beside it.
    """
    # Only the labelled positions reach the softmax: prompts and images are most of a batch, and a [N, T, V] in fp32
    # would be the largest tensor of the pass.
    wanted = labels != IGNORED
    owner, _ = wanted.nonzero(as_tuple=True)
    chosen = logits[wanted]
    chosen = chosen if chosen.dtype == torch.float64 else chosen.float()
    token_losses = F.cross_entropy(chosen, labels[wanted], reduction="none")
    totals = token_losses.new_zeros(labels.shape[0]).index_add(0, owner, token_losses)
    return totals / wanted.sum(1)


class Task:
    """What a model is trained for. Subclass it and override ``logits``, or ``losses`` where there is no cross-entropy.

    Batches are mappings of tensors, or tuples of them, whose first axis is the samples; override ``inputs``,
    ``singles`` and ``size`` for anything else.
    """

    def logits(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Returns ``[N, T, V]`` logits and the ``[N, T]`` labels they are to predict, ``IGNORED`` elsewhere.

        The estimators ``projected`` and ``second_order`` need them.
        """
        raise InfluenceError(
            f"{type(self).__name__} gives losses and no logits, which projected and second_order need: pass "
            "CausalLM(), Classification() or a Task of your own with a method logits, or take exact, first_order or "
            "finite_difference"
        )

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Returns ``[N]`` losses in nats, each of one sample's rows alone."""
        return answer_losses(*self.logits(model, batch))

    def inputs(self, batch: Any) -> Mapping[str, Any]:
        """Returns the model's arguments by name; empty where they have no names."""
        return {k: v for k, v in batch.items() if k != "labels"} if isinstance(batch, Mapping) else {}

    def size(self, batch: Any) -> int:
        """Returns the number of samples."""
        return len(next(iter(tensors_of(batch))))

    def images(self, batch: Any) -> Sequence[int] | None:
        """Returns how many images each sample has; ``None`` where that is not known. Models that make tiles of images
        (LLaVA-NeXT) need it for gradients of their vision tower."""
        return None

    def singles(self, batch: Any) -> list[Any]:
        """Returns each sample in a batch of its own."""
        return [_rows(batch, slice(k, k + 1)) for k in range(self.size(batch))]

    def together(self, singles: Sequence[Any]) -> Any:
        """Returns batches of one sample as one batch; the first alone if they cannot be stacked."""
        shapes = {tuple(tensor.shape[1:] for tensor in tensors_of(single)) for single in singles}
        return _joined(singles) if len(shapes) == 1 else singles[0]

    def shapes(self, single: Any) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the tensors in a batch of one; samples that have them in common share a batch without
        padding."""
        return {str(k): tuple(tensor.shape) for k, tensor in enumerate(tensors_of(single))}

    def ids(self, batch: Any) -> list[str] | None:
        """Returns what each sample is called in messages; ``None`` for its number."""
        return None

    def fingerprint(self) -> str:
        """Returns a hash of what the loss is: by the compiled code of this class, and of functions that it holds."""
        parts = [*of_compiled(type(self)), *(part for value in vars(self).values() for part in of_compiled(value))]
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def digests(self, batch: Any) -> list[str]:
        """Returns a hash of each sample's content, by which computed vectors are found again."""
        return [digest_of(dict(enumerate(tensors_of(single)))) for single in self.singles(batch)]


class CausalLM(Task):
    """Next-token prediction on Hugging Face style batches: the model's arguments, and ``labels [N, T]``.

    Labels are the tokens themselves, -100 outside the answers; the shift happens here. The loss of a sample is the mean
    over its answer tokens.
    """

    def logits(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        options = {"use_cache": False} if hasattr(model, "config") else {}
        logits = _logits_of(model(**self.inputs(batch), **options))
        return logits[:, :-1], batch["labels"][:, 1:]


class Classification(Task):
    """Cross-entropy of one class a sample. A batch is ``(inputs, labels)``, or a mapping with ``labels [N]``."""

    def logits(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        if isinstance(batch, Mapping):
            result, labels = model(**self.inputs(batch)), batch["labels"]
        else:
            *inputs, labels = batch
            result = model(*inputs)
        return _logits_of(result).unsqueeze(1), labels.unsqueeze(1)


class PerSampleLoss(Task):
    """Any loss, as a function ``loss(model, batch) -> [N]``; for estimators that need no logits."""

    def __init__(self, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        self._loss = loss

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        return self._loss(model, batch)


def digest_of(tensors: Mapping[Any, Tensor]) -> str:
    """Returns a hash that is the same for the same names, types, shapes and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def made_by(model: nn.Module, task: Task, device: str) -> dict[str, str]:
    """Returns what turns the model's weights and a batch into a loss, for the keys of what is kept on disk: the model's
    class and settings, the loss, and mixed precision. The code of a model's own forward pass is not looked at."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    settings = to_dict() if callable(to_dict) else {}
    mixed = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "off"
    return {
        "model class": f"{type(model).__module__}.{type(model).__qualname__}",
        "model config": json.dumps(settings, sort_keys=True, default=str),
        "adapters": str(adapter_settings(model)),
        "task": f"{type(task).__module__}.{type(task).__qualname__} {task.fingerprint()}",
        "mixed precision": mixed,
    }


def adapter_settings(module: nn.Module) -> list[tuple[Any, ...]]:
    """What its adapters (peft's) do to it beside their weights: scaling, which are active, whether they are merged or
    disabled. peft keeps these as plain attributes, in no parameter, buffer or model's configuration."""
    return [
        (
            name,
            sorted((str(adapter), float(scale)) for adapter, scale in layer.scaling.items()),
            [str(adapter) for adapter in layer.active_adapters],
            sorted(str(adapter) for adapter in getattr(layer, "merged_adapters", ())),
            bool(getattr(layer, "disable_adapters", False)),
            sorted((str(k), type(v).__name__) for k, v in dict(getattr(layer, "lora_variant", {}) or {}).items()),
        )
        for name, layer in module.named_modules()
        if isinstance(getattr(layer, "scaling", None), Mapping) and hasattr(layer, "active_adapters")
    ]


def _logits_of(output: Any) -> Tensor:
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise InfluenceError(f"the model returned a {type(output).__name__}, not logits or an object with logits")
    return logits


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors of a batch that is a mapping, a list or a tuple; none of another."""
    if not isinstance(batch, Mapping | list | tuple):
        return []
    values = batch.values() if isinstance(batch, Mapping) else batch
    return [value for value in values if isinstance(value, Tensor)]


def _rows(batch: Any, rows: slice) -> Any:
    if isinstance(batch, Mapping):
        return {name: value[rows] if isinstance(value, Tensor) else value for name, value in batch.items()}
    return tuple(value[rows] if isinstance(value, Tensor) else value for value in batch)


def _joined(batches: Sequence[Any]) -> Any:
    first = batches[0]
    keys = list(first) if isinstance(first, Mapping) else range(len(first))
    parts = {
        key: torch.cat([batch[key] for batch in batches]) if isinstance(first[key], Tensor) else first[key]
        for key in keys
    }
    return parts if isinstance(first, Mapping) else tuple(parts.values())
