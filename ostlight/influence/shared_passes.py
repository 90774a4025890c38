"""Forward passes of a model whose weights are sharded over ranks (FSDP2), by ranks that differ in work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate

from ostlight.errors import InfluenceError, RankFailedError

ENDS = "the run ends because rank {rank} failed{why}; what is finished stays, and the same command goes on from there"


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank holds a part of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def of_all_ranks(own: Any) -> list[Any]:
    """What each rank gives, by rank; all of them call it. Only this one's where there are no others."""
    if not dist.is_initialized():
        return [own]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    return found


def gathered(part: Tensor, like: Tensor) -> Tensor:
    """The tensor of which each rank has a part as it has one of ``like``: whole, on every rank."""
    if not isinstance(like, DTensor):
        return part
    sharded = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return sharded.full_tensor()


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that all ranks have, sharded as ``like`` is: a copy."""
    if not isinstance(like, DTensor):
        return whole
    everywhere = DTensor.from_local(whole, like.device_mesh, [Replicate()] * len(like.placements), run_check=False)
    return everywhere.redistribute(placements=like.placements).to_local().clone()


class SharedPasses:
    """Has all ranks make as many forward passes of one sharded model, whatever work each has.

    A pass gathers the weights of a block at a time from all ranks, so no rank makes one alone. Between ``begin`` and
    ``end`` each pass, or round of passes, is announced to all ranks, and

    - a rank that has none left (``end``) gathers the weights with the others, and computes nothing;
    - a rank whose pass fails (memory, a sample that the model refuses) gathers what is left of it, and then raises the
      error: the others do not notice, and it may go on (with a PyTorch that can reset FSDP, else the run ends);
    - a rank that ends (``fail``) says so, and all others raise ``RankFailedError``.

    Before ``begin`` all ranks make the same passes, of which nothing is announced. Use ``of``: a model has one of
    these.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._announces = self._in_pass = self._in_round = self._is_idle = self._others_know = False
        self._failed: str | None = None
        self._error: Exception | None = None
        self._order: list[Any] = []
        self._gathered: list[Any] = []
        self._made = 0
        self._units = [module for module in model.modules() if isinstance(module, FSDPModule)]
        model.register_forward_pre_hook(self._before, prepend=True)
        for module in self._units:
            module.register_forward_pre_hook(self._note_gathered)  # after FSDP's own
        model.register_forward_hook(self._after, always_call=True)

    @classmethod
    def of(cls, model: nn.Module) -> SharedPasses:
        """Returns the one of a sharded model."""
        found = model.__dict__.get("_shared_passes")
        if not isinstance(found, cls):
            found = model.__dict__["_shared_passes"] = cls(model)
        return found

    @property
    def has_made_one(self) -> bool:
        """Whether a pass was made, from which the order of the blocks is known."""
        return bool(self._order)

    def begin(self) -> None:
        """From here on ranks differ; all of them call this, after at least one pass."""
        self._announces, self._is_idle, self._others_know, self._failed = True, False, False, None

    def end(self, idle: Callable[[], Any] | None = None, passes: int = 1) -> None:
        """Takes part in the passes of the other ranks until all have called this.

        Args:
            idle: makes the passes of one ``round``, where the ranks make rounds.
            passes: of a round.

        Raises:
            RankFailedError: another rank has failed.
        """
        if not self._announces:
            return
        self._is_idle = True
        while self._exchange(working=False):
            if idle is None:
                self._gather_all()
            else:
                with self._confirmed(passes):
                    idle()
        self._announces = False

    def fail(self) -> bool:
        """Tells the other ranks that this one ends. Returns whether they know: before ``begin`` and in the midst of a
        pass they cannot be told."""
        if self._announces and not (self._in_pass or self._in_round):
            self._tell("")
        self._announces = False
        return self._others_know

    @contextmanager
    def round(self, passes: int) -> Iterator[None]:
        """Inside, ``losses`` is called that often, on every rank: where weights are shifted between the passes, all
        ranks must be at the same one.

        Raises:
            RankFailedError: a rank has failed outside of a pass, so that the losses of the others may be wrong.
            Exception: what failed in a pass of this rank.
        """
        if not self._announces:
            yield
            return
        self._exchange(working=True)
        with self._confirmed(passes):
            yield
        error, self._error = self._error, None
        if error is not None:
            raise error

    def losses(self, compute: Callable[[], Tensor], size: int) -> Tensor:
        """What ``compute`` returns, which makes one pass; in a round NaN where it fails, or where one before it did.

        Args:
            size: of what it returns.
        """
        if not self._in_round:
            return compute()
        made = self._made
        if not self._is_idle and self._error is None:
            try:
                return compute()
            except Exception as error:
                self._error = error.with_traceback(None)  # its frames hold the tensors of the pass
        self._raise_failed()
        if self._made == made:
            self._gather_all()
        return torch.full((size,), float("nan"), dtype=torch.float64, device=self._device)

    @contextmanager
    def _confirmed(self, passes: int) -> Iterator[None]:
        """Inside is a round of so many passes; in the end the ranks tell each other that it is valid."""
        made, self._in_round, self._error = self._made, True, None
        try:
            yield
        except Exception as error:
            self._raise_failed()
            for _ in range(passes - (self._made - made)):
                self._gather_all()
            self._tell(f" ({type(error).__name__}: {error})")
            raise RankFailedError(str(self._failed)) from error
        self._in_round = False
        self._exchange(working=True)

    def _exchange(self, working: bool) -> bool:
        """Whether any rank is working.

        Raises:
            RankFailedError: a rank has failed.
        """
        self._raise_failed()
        failed = 0
        try:
            any_working, failed = self._largest([int(working), 0])
        except RuntimeError as error:
            self._end(f"the run ends because a rank is gone ({error}); the same command goes on with what is left")
        if failed:
            self._others_know = True
            self._end(ENDS.format(rank=failed - 1, why="; its message says why"))
        self._raise_failed()
        return bool(any_working)

    def _tell(self, why: str) -> None:
        rank = dist.get_rank()
        self._end(ENDS.format(rank=rank, why=why))
        self._largest([0, rank + 1])
        self._others_know = True

    def _end(self, message: str) -> None:
        self._announces, self._failed = False, message

    def _raise_failed(self) -> None:
        if self._failed is not None:
            raise RankFailedError(self._failed)

    def _largest(self, values: list[int]) -> list[int]:
        largest = torch.tensor(values, device=self._device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.tolist()

    def _before(self, model: nn.Module, arguments: Any) -> None:
        self._raise_failed()
        if self._announces and not self._in_round:
            self._exchange(working=True)
        if not torch.is_grad_enabled():
            self.reshard()  # what is left gathered would not see that its parts were shifted
        self._in_pass, self._gathered = True, []
        self._made += 1

    def _note_gathered(self, module: Any, arguments: Any) -> None:
        self._gathered.append(module)

    def _after(self, model: nn.Module, arguments: Any, output: Any) -> None:
        """Also after a pass that has failed, whose output is ``None``."""
        if not self._in_pass:
            return
        if output is not None:
            self._order = self._order or self._gathered
            if not torch.is_grad_enabled():
                self.reshard()
        elif self._announces:
            self._complete()
        self._in_pass = False

    def _complete(self) -> None:
        """Gathers what is left of a pass that has failed here."""
        try:
            if not hasattr(self.model, "reset_iter_state"):
                raise RuntimeError("this PyTorch cannot reset FSDP after a pass that failed")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.reshard()
            self._gather(self._order[len(self._gathered) :])
        except Exception as error:  # the others wait in vain: this process ends, and with it the run
            first = sys.exc_info()[1] if error.__context__ is None else error.__context__
            self._end(ENDS.format(rank=dist.get_rank(), why=f" in a pass ({first}; then {error})"))

    def _gather_all(self) -> None:
        self._made += 1
        self._gather(self._order)

    def _gather(self, modules: Sequence[Any]) -> None:
        for module in modules:
            module.unshard()
            module.reshard()

    def reshard(self) -> None:
        """Leaves each rank with its part of the weights alone, also after a pass that has failed."""
        if self._gathered and isinstance(self.model, FSDPModule) and hasattr(self.model, "reset_iter_state"):
            self.model.reset_iter_state()
            return
        for module in self._units:
            module.reshard()

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def gradient_parts(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], sums: Iterable[Tensor]
) -> dict[str, Tensor]:
    """This rank's part of the gradient of the sum of some losses, by parameter name.

    All ranks run the same ones, so that the mean over ranks, which FSDP takes, is the gradient itself.

    Args:
        sums: of losses, each of one pass with a graph, made as it is asked for.

    Raises:
        InfluenceError: a parameter asks for no gradient.
    """
    if frozen := [name for name, parameter in parameters.items() if not parameter.requires_grad]:
        raise InfluenceError(f"{frozen[0]} asks for no gradient; set requires_grad before the model is sharded")
    before = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    try:
        with torch.enable_grad():
            for loss in sums:
                loss.backward()
        found = {name: parameter.grad for name, parameter in parameters.items()}
        own = {name: own_part(torch.zeros_like(parameters[name]) if g is None else g) for name, g in found.items()}
        return {name: gradient.detach().clone() for name, gradient in own.items()}
    finally:
        for name, parameter in model.named_parameters():
            parameter.grad = before[name]


def norm_over_ranks(parts: Mapping[str, Tensor], device: torch.device) -> float:
    """Euclidean norm of what the ranks hold a part each of."""
    squares = sum(float(part.detach().double().square().sum()) for part in parts.values())
    squared = torch.tensor([squares], dtype=torch.float64, device=device)
    dist.all_reduce(squared)
    return float(squared) ** 0.5
