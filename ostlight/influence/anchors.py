"""The anchors: trusted batches on which the effect of a step is read, as a whole and by group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ostlight.errors import InfluenceError
from ostlight.influence.task import CausalLM, Task
from ostlight.progress import track


@dataclass(frozen=True)
class Anchors:
    """The trusted samples, in batches of any size.

    Attributes:
        batches: all anchors, each once; run through more than once.
        task: how losses and logits come out of a batch.
        groups: the group of each anchor; all the same where there are no groups. Each group gets a mean gradient (and
            probes) of its own, with weights within the group.
        indices: for each batch, the number of each row's anchor; counted through where not given.
        ids: what each anchor is called in messages; its number, where not given.

    Raises:
        InfluenceError: there are no anchors, or the indices are not each number once.
    """

    batches: Sequence[Any]
    task: Task = field(default_factory=CausalLM)
    groups: Sequence[Hashable] = ()
    indices: Sequence[Sequence[int]] = ()
    ids: Sequence[str] = ()

    def __post_init__(self) -> None:
        sizes = [self.task.size(batch) for batch in self.batches]
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        counted = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
        object.__setattr__(self, "indices", [list(rows) for rows in self.indices or counted])
        object.__setattr__(self, "groups", list(self.groups) or [""] * sum(sizes))
        seen = Counter(index for rows in self.indices for index in rows)
        wrong = sorted(
            {k for k in range(len(self.groups)) if seen[k] != 1} | {k for k in seen if not 0 <= k < len(self.groups)}
        )
        if wrong or [len(rows) for rows in self.indices] != sizes:
            raise InfluenceError(
                f"anchors: {len(self.groups)} have a group, the batches hold {sum(sizes)} with {sum(seen.values())} "
                f"indices; each number from 0 belongs to one row, and these do not: {wrong[:10]}"
            )
        if not self.groups:
            raise InfluenceError("there are no anchors; give at least one batch of trusted samples")

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def sizes(self) -> dict[Hashable, int]:
        """Anchors in each group, the groups in the order they first appear."""
        return dict(Counter(self.groups))

    @property
    def names(self) -> list[Any]:
        """The groups, sorted; empty where all anchors are one group."""
        return sorted(set(self.groups), key=str) if len(set(self.groups)) > 1 else []

    def shares_by_number(self) -> Tensor:
        """``[groups, anchors]`` float64: the means over each of ``names``, columns by the anchors' numbers."""
        members = torch.tensor([[float(g == name) for g in self.groups] for name in self.names], dtype=torch.float64)
        return members / members.sum(1, keepdim=True) if self.names else members

    def each_its_own_group(self) -> Anchors:
        """The same anchors, every one a group, in the order of their numbers."""
        return replace(self, groups=[f"{k:09d}" for k in range(len(self))])

    def name_of(self, index: int) -> str:
        return f"anchor {self.ids[index]!r}" if self.ids else f"anchor {index}"

    def weights(self, device: torch.device) -> Tensor:
        """``[1 + groups, anchors]`` float64, columns in the order of ``batches``: row 0 is the mean over all
        (``L_V``), row k the mean over group ``names[k - 1]``."""
        row_of = {name: 1 + k for k, name in enumerate(self.names)}
        groups = [row_of.get(self.groups[k], 0) for rows in self.indices for k in rows]
        weights = torch.zeros(1 + len(row_of), len(groups), dtype=torch.float64, device=device)
        weights[groups, range(len(groups))] = 1
        weights[0] = 1
        return weights / weights.sum(1, keepdim=True)

    def losses(self, model: nn.Module) -> Tensor:
        """``[1 + groups]`` float64: ``L_V`` and each group's mean loss, in nats, without gradients."""
        with torch.no_grad():
            losses = torch.cat([self.task.losses(model, batch).double() for batch in self.batches])
        return self.weights(losses.device) @ losses

    def runs(self, model: nn.Module) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """``(indices, logits [N, T, V], labels [N, T])`` of each batch, with a graph."""
        pairs = zip(self.indices, self.batches, strict=True)
        for indices, batch in track(pairs, "pass over the anchors", len(self.batches), "batches"):
            yield list(indices), *self.task.logits(model, batch)

    def singles(self) -> Iterator[tuple[int, Any]]:
        """Each anchor's number, and the anchor in a batch of its own."""
        for indices, batch in zip(self.indices, self.batches, strict=True):
            yield from zip(indices, self.task.singles(batch), strict=True)

    def digest(self) -> str:
        """A hash of all anchors in the order of their numbers, however they are batched."""
        numbered = [
            pair
            for indices, batch in zip(self.indices, self.batches, strict=True)
            for pair in zip(indices, self.task.digests(batch), strict=True)
        ]
        return " ".join(digest for _, digest in sorted(numbered))
