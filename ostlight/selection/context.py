"""What a selector is given before it scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from torch import nn

from ostlight.data.sample import Sample
from ostlight.errors import SelectorError
from ostlight.selection.notes import write_note

if TYPE_CHECKING:
    from ostlight.models.batch import Batch
    from ostlight.models.module import MultimodalModel


def no_anchors(selector: str) -> SelectorError:
    """The error of a selector that needs anchors where there are none."""
    return SelectorError(f"selector {selector!r} needs anchors; name a file of trusted samples in anchors.path")


@dataclass
class ProxyContext:
    """The proxy and how it was warmed up.

    Attributes:
        model: warmed up, in eval mode; on the rank's device once scoring starts.
        folder: of the proxy, with the records of its warm-up if it was ``warmed_up``; else they are of another one.
        records: size of the pool.
        examples: random encodable samples of the pool, as many as asked for, each in a batch of its own on the model's
            device; of two counts, the smaller gives the first samples of the larger.
        update_norm: median distance the given parameters moved in a step of the warm-up; ``None`` without a warm-up.
        lr: the warm-up's learning rate.
        tokens_per_batch: padded tokens in one forward pass.
        warmed_up: whether it was; not with ``proxy.warmup.fraction=0``.
        seconds_per_sample: that a step of the warm-up took for each of its samples; ``None`` where it is not known.
    """

    model: MultimodalModel
    folder: Path
    records: int
    examples: Callable[[int], Iterator[Batch]]
    update_norm: Callable[[Mapping[str, nn.Parameter]], float | None]
    lr: float
    tokens_per_batch: int
    seconds_per_sample: float | None = None
    warmed_up: bool = True


@dataclass
class ScoringContext:
    """Everything a selector may know beyond the batch that it scores.

    Attributes:
        anchors: the trusted samples; empty where the configuration names none.
        groups: the group of each anchor, as long as ``anchors``; all equal where the configuration names no group.
        seed: the run's seed.
        folder: a folder of the run that is the selector's own, for caches.
        dependencies: the whole score table of each selector that ``Selector.dependencies`` names, by label.
        dependency_notes: what each of them noted while it scored, by label.
        dependency_folders: the ``folder`` of each of them, with the files it left there, by label.
        group_tag: the tag by which anchors are grouped; ``None`` where the configuration names none.
    """

    anchors: Sequence[Sample]
    groups: Sequence[str]
    seed: int
    folder: Path
    _proxy: ProxyContext | None = None
    dependencies: Mapping[str, pa.Table] = field(default_factory=dict)
    dependency_notes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dependency_folders: Mapping[str, Path] = field(default_factory=dict)
    group_tag: str | None = None

    @property
    def proxy(self) -> ProxyContext:
        """The proxy and how it was warmed up.

        Raises:
            SelectorError: the selector did not declare ``uses_proxy = True``.
        """
        if self._proxy is None:
            raise SelectorError("this selector asks for a proxy without `uses_proxy = True` in its class; declare it")
        return self._proxy

    def note(self, name: str, value: Any) -> None:
        """Stores a fact of the run, such as ``step_size``, in ``folder`` for the report; a resumed run keeps its notes.

        Raises:
            SelectorError: the value cannot be written as JSON.
        """
        write_note(self.folder, name, value)

    def require_anchors(self, selector: str) -> None:
        """Checks that there are anchors to score against.

        Args:
            selector: its name, for the message.

        Raises:
            SelectorError: there is no anchor.
        """
        if not self.anchors:
            raise no_anchors(selector)
