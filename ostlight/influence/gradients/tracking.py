"""Parameters that report every use of themselves.

A per-sample gradient is lost the moment a weight gradient is summed over the batch. So the weights get no gradient at
all: for the length of one forward and backward pass each parameter is replaced by a ``TrackedTensor``, a tensor
subclass that sees every torch function it is an argument of. Where the function is a supported use
(``parameter_uses.py``), its result is tapped: in the backward pass the tap sees the result's gradient, passes it on
with the input it saved, and both are consumed at once. Where weights are sharded over ranks (FSDP2), each parameter is
replaced when it has been gathered (``gathered.py``).

Tracking the parameter rather than its layer is what makes silence impossible: a tied head, a module called twice, a
norm written out by hand and a weight used without its module are all seen; an unsupported use is an error with a name.

| use of a parameter | supported |
| --- | --- |
| ``F.linear``: ``nn.Linear``, tied heads, weights used by hand, LoRA's A and B | weight and bias |
| ``F.conv1d``, ``F.conv2d``, ``F.conv3d`` | weight and bias, without groups; numeric or ``valid`` padding |
| ``F.embedding``, ``weight[ids]`` | weight; not ``max_norm``, ``scale_grad_by_freq``, boolean masks |
| ``F.layer_norm``, ``F.rms_norm``, and norms written out by hand | weight and bias |
| ``+``, ``-``, ``*`` of a parameter and activations: scales, biases, position embeddings | the parameter |
| class tokens: ``expand`` or ``repeat`` over the batch, then ``torch.cat`` or ``+`` | the parameter |
| computed from parameters alone first: casts, slices, ``1 + weight`` | as what it is then used for |
| ``torch.matmul(inputs, weight)`` | a weight of two axes |
| experts: weights ``[E, D_out, D_in]``, biases ``[E, D_out]``, as transformers' modules have them | weight and bias |
| ``addmm`` (GPT-2), ``einsum``, ``F.bilinear``, recurrent layers | no: ``InfluenceError`` |
| ``F.group_norm``, ``F.batch_norm``, grouped and transposed convolutions | no: ``InfluenceError`` |
| inside ``torch.no_grad``, custom autograd functions or reentrant checkpointing | no: ``InfluenceError`` |
| a parameter whose rows are not the batch's | no: ``InfluenceError`` |

The error names parameter, layer and function. Leave the parameter out (``parameters``), or take the estimator ``exact``
or ``finite_difference``, which need no per-sample gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ostlight.errors import InfluenceError
from ostlight.influence.gradients.adapters import fused_forwards
from ostlight.influence.gradients.experts import expert_forwards
from ostlight.influence.gradients.gathered import places_of, replaced_as_gathered
from ostlight.influence.gradients.sink import WAY_OUT, GradientSink
from ostlight.influence.shared_passes import is_sharded


class Use(Protocol):
    """One use of parameters in a forward pass."""

    @property
    def names(self) -> list[str]:
        """The parameters used."""

    def consume(self, grad: Tensor, kept: tuple[Tensor, ...]) -> None:
        """Called once in the backward pass with the gradient of the use's result and the tensors it kept."""


class _Tap(torch.autograd.Function):
    """Marks a result so that its gradient is seen, without changing it.

    The result is returned as itself (marked as modified) rather than as a view, so that models may write into it. The
    kept tensors go through ``save_for_backward``: gradient checkpointing then drops and recomputes them like any
    activation. ``root`` needs a gradient, so every tapped result does, although no weight and no input does.
    """

    @staticmethod
    def forward(ctx: Any, result: Tensor, root: Tensor, use: Use, *kept: Tensor) -> Tensor:
        ctx.mark_dirty(result)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*kept)
        ctx.use = use
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        kept = ctx.saved_tensors
        if grad is not None:
            ctx.use.consume(grad.detach(), kept)
        return grad, None, None, *([None] * len(kept))


class TrackedTensor(torch.Tensor):
    """Stands in for a parameter, or for something computed from parameters alone (a cast, a slice, ``1 + weight``).

    Attributes:
        plain: the value, for computing with.
        graph: the value with a small autograd graph back to the ``leaves``, without a batch in it. Where the value was
            expanded over the batch, the graph stops before that.
        leaves: the parameters' names with the leaves of that graph.
        alias: the parameter's name where the value is the parameter itself up to its dtype.
        expanded: ``plain`` was broadcast to the batch, ``graph`` was not.
    """

    plain: Tensor
    graph: Tensor
    leaves: dict[str, Tensor]
    alias: str | None
    expanded: bool
    tracker: ParameterTracker

    @classmethod
    def of(
        cls,
        tracker: ParameterTracker,
        plain: Tensor,
        graph: Tensor,
        leaves: dict[str, Tensor],
        alias: str | None = None,
        expanded: bool = False,
    ) -> TrackedTensor:
        self = plain.detach().as_subclass(cls)
        self.tracker, self.plain, self.graph, self.leaves = tracker, plain.detach(), graph, leaves
        self.alias, self.expanded = alias, expanded
        return self

    @property
    def label(self) -> str:
        return " and ".join(object.__getattribute__(self, "leaves"))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return _dispatch(func, args, kwargs or {})


Rule = Callable[..., Any]
"""``rule(tracker, func, args, kwargs)`` computes a use and returns the tapped result; ``NotImplemented`` passes."""

RULES: dict[Any, Rule] = {}
"""Torch function to rule; filled by ``parameter_uses.py``."""

SAME_VALUES: frozenset[Any] = frozenset(
    {Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as,
     Tensor.contiguous, Tensor.clone}
)  # fmt: skip
EXPANSIONS: frozenset[Any] = frozenset({Tensor.expand, Tensor.expand_as, torch.broadcast_to, Tensor.repeat})


class ParameterTracker:
    """The parameters tracked for one forward and backward pass, and who owns their gradients."""

    def __init__(self, model: nn.Module, parameters: dict[str, nn.Parameter], sink: GradientSink) -> None:
        self.model = model
        self.parameters = parameters
        self.sink = sink
        device = next(iter(parameters.values())).device
        self.root = torch.zeros((), device=device, requires_grad=True)
        self.backward_began = False

    def tap(self, result: Tensor, use: Use, *kept: Tensor) -> Tensor:
        if not self.backward_began:
            # Checkpointing runs a forward again during the backward pass; its uses are the ones already announced.
            for name in use.names:
                self.sink.expect(name)
        saved = (tensor.detach() for tensor in kept)
        tapped: Tensor = _Tap.apply(result, self.root, use, *saved)  # type: ignore[no-untyped-call, unused-ignore]
        return tapped

    @contextmanager
    def tracking(self) -> Iterator[None]:
        """Puts the stand-ins in the parameters' places and keeps every weight from getting a gradient."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        fused = list(expert_forwards(self.model, names, self))
        if is_sharded(self.model):
            replaced = replaced_as_gathered(self.model, names, self._stand_in)
        else:
            replaced = self._replaced()
            fused += fused_forwards(self.model, names, self.sink, self.root, lambda: not self.backward_began)
        try:
            for module, forward in fused:
                module.forward = forward
            with replaced:
                yield
        finally:
            for module, _ in fused:
                del module.forward

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        stand_ins = {id(parameter): self._stand_in(name, parameter) for name, parameter in self.parameters.items()}
        asked = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        places = places_of(self.model, stand_ins)
        try:
            for parameter in asked:
                parameter.requires_grad_(False)
            for module, key, parameter in places:
                module._parameters[key] = stand_ins[id(parameter)]  # type: ignore[assignment]
            yield
        finally:
            for module, key, parameter in places:
                module._parameters[key] = parameter
            for parameter in asked:
                parameter.requires_grad_(True)

    def backward(self, losses: Callable[[], Tensor], num_samples: int) -> Tensor:
        """One forward and one backward pass, whose uses of the parameters the sink is given; returns ``[N]`` losses.

        Args:
            losses: runs the model and returns ``[N]`` losses; sample i's may depend on sample i's rows alone.
            num_samples: N.

        Raises:
            InfluenceError: losses that are not one a sample, or that no parameter took part in.
        """
        with self.tracking(), torch.enable_grad():
            values = losses()
            if values.shape != (num_samples,):
                raise InfluenceError(
                    f"the losses have shape {tuple(values.shape)}, not [{num_samples}]: "
                    "the gradients are per sample, so the loss has to be"
                )
            if not values.requires_grad:
                raise InfluenceError("none of the parameters took part in the losses; choose other parameters")
            self.backward_began = True
            torch.autograd.grad(values.sum(), self.root, allow_unused=True)
        return values

    def _stand_in(self, name: str, parameter: Tensor) -> TrackedTensor:
        leaf = parameter.detach().requires_grad_(True)
        return TrackedTensor.of(self, parameter, leaf, {name: leaf}, alias=name)

    def check_gradients_on(self, names: list[str]) -> None:
        """Raises InfluenceError where a use of these parameters would not reach the backward pass."""
        if not torch.is_grad_enabled():
            raise InfluenceError(
                f"per-sample gradients: {' and '.join(names)} is used with gradients switched "
                "off: inside torch.no_grad, a custom autograd function, or reentrant checkpointing (pass "
                f"use_reentrant=False); {WAY_OUT}"
            )

    def unsupported(self, func: Any, tracked: list[TrackedTensor]) -> InfluenceError:
        names = list(dict.fromkeys(name for one in tracked for name in one.leaves))
        layers = [f"{name} (in {self._owner(name)})" for name in names]
        called = getattr(func, "__qualname__", None) or getattr(func, "__name__", str(func))
        return InfluenceError(
            f"per-sample gradients: the parameter {' and '.join(layers)} is used by {called} in a way that is not "
            f"supported; {WAY_OUT}"
        )

    def _owner(self, name: str) -> str:
        path = name.rpartition(".")[0]
        module = self.model.get_submodule(path)
        return f"{path or 'the model'}, a {type(module).__name__}"


def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = _tensors((args, kwargs))
    tracked = [tensor for tensor in tensors if isinstance(tensor, TrackedTensor)]
    tracker = tracked[0].tracker
    rule = RULES.get(func)
    if rule is not None and len(tracked) < len(tensors):
        tracker.check_gradients_on([one.label for one in tracked])
        result = rule(tracker, func, args, kwargs)
        if result is not NotImplemented:
            return result
    others = [tensor for tensor in tensors if not isinstance(tensor, TrackedTensor)]
    if all(tensor.ndim == 0 for tensor in others) or func in (Tensor.type_as, Tensor.expand_as):
        return _derived(tracker, func, args, kwargs, tracked)
    plain = func(*plain_of(args), **plain_of(kwargs))
    if any(tensor.is_floating_point() for tensor in _tensors(plain)):
        raise tracker.unsupported(func, tracked)
    return plain


def _derived(tracker: ParameterTracker, func: Any, args: Any, kwargs: Any, tracked: list[TrackedTensor]) -> Any:
    """What is computed from parameters alone keeps its way back to them; a number or a shape needs none."""
    if func in EXPANSIONS:
        one = tracked[0]
        plain = func(*plain_of(args), **kwargs)
        times = args[1:] if not isinstance(args[1], (tuple, list, torch.Size)) else args[1]
        if func is Tensor.repeat and (one.plain.shape[0] != 1 or any(time != 1 for time in times[1:])):
            raise tracker.unsupported(func, tracked)
        return TrackedTensor.of(tracker, plain, one.graph, one.leaves, expanded=True)
    with torch.enable_grad():
        graph = func(*_mapped(args, lambda one: one.graph), **_mapped(kwargs, lambda one: one.graph))
    made = [tensor for tensor in _tensors(graph) if tensor.requires_grad]
    if not made:
        return graph
    expanded = any(one.expanded for one in tracked)
    same = func in SAME_VALUES
    if expanded and not same:
        raise tracker.unsupported(func, tracked)
    leaves = {name: leaf for one in tracked for name, leaf in one.leaves.items()}
    alias = tracked[0].alias if same else None

    def wrap(tensor: Tensor) -> TrackedTensor:
        plain = func(*plain_of(args), **kwargs) if expanded else tensor
        return TrackedTensor.of(tracker, plain, tensor, leaves, alias, expanded)

    if isinstance(graph, Tensor):
        return wrap(graph)
    return type(graph)(wrap(tensor) for tensor in graph)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _mapped(values: Any, change: Callable[[TrackedTensor], Any]) -> Any:
    return tree_map_only(TrackedTensor, change, values)


def plain_of(values: Any) -> Any:
    """The same arguments with every stand-in replaced by its value."""
    return _mapped(values, lambda one: one.plain)
