"""Parameters that report every use of themselves.

A per-sample gradient is lost the moment a weight gradient is summed over the batch. So the weights get no gradient at
all: for the length of one forward and backward pass each scoped parameter is replaced by a ``Watched`` stand-in, a
tensor subclass that sees every torch function it is handed to. Where the function is one of the known uses
(``uses.py``), the result is tapped: in the backward pass the tap sees the output's gradient, hands it on with the
input it kept, and both are consumed on the spot.

Watching the parameter rather than its layer is what makes silence impossible: a tied head, a module called twice, a
norm written out by hand and a weight used behind its module's back all arrive here by the same door, and a use nobody
knows is an error with a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ostlight.errors import OstlightError
from ostlight.influence.gradients.adapters import fused_forwards
from ostlight.influence.gradients.sink import Sink


class Use(Protocol):
    """One use of parameters in a forward pass."""

    @property
    def names(self) -> list[str]:
        """The parameters used."""

    def consume(self, grad: Tensor, kept: tuple[Tensor, ...]) -> None:
        """Called once in the backward pass with the gradient of the use's result and the tensors it kept."""


class Tap(torch.autograd.Function):
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


class Watched(torch.Tensor):
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
    watch: Watch

    @classmethod
    def of(
        cls,
        watch: Watch,
        plain: Tensor,
        graph: Tensor,
        leaves: dict[str, Tensor],
        alias: str | None = None,
        expanded: bool = False,
    ) -> Watched:
        self = plain.detach().as_subclass(cls)
        self.watch, self.plain, self.graph, self.leaves = watch, plain.detach(), graph, leaves
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
"""``rule(watch, func, args, kwargs)`` computes a known use and returns the tapped result; ``NotImplemented`` passes."""

RULES: dict[Any, Rule] = {}
"""Torch function to rule; filled by ``uses.py``."""

SAME_VALUES: frozenset[Any] = frozenset(
    {Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as,
     Tensor.contiguous, Tensor.clone}
)  # fmt: skip
EXPANSIONS: frozenset[Any] = frozenset({Tensor.expand, Tensor.expand_as, torch.broadcast_to, Tensor.repeat})


class Watch:
    """The parameters under watch for one forward and backward pass, and who owns their gradients."""

    def __init__(self, model: nn.Module, parameters: dict[str, nn.Parameter], sink: Sink) -> None:
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
        return Tap.apply(result, self.root, use, *(tensor.detach() for tensor in kept))  # type: ignore[no-untyped-call]

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Puts the stand-ins in the parameters' places and keeps every weight from asking for a gradient."""
        stand_ins = {id(parameter): self._stand_in(name, parameter) for name, parameter in self.parameters.items()}
        asked = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        places = [
            (module, key, parameter)
            for module in self.model.modules()
            for key, parameter in module._parameters.items()
            if parameter is not None and id(parameter) in stand_ins
        ]
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        fused = list(fused_forwards(self.model, names, self.sink, self.root, lambda: not self.backward_began))
        try:
            for module, forward in fused:
                module.forward = forward
            for parameter in asked:
                parameter.requires_grad_(False)
            for module, key, parameter in places:
                module._parameters[key] = stand_ins[id(parameter)]  # type: ignore[assignment]
            yield
        finally:
            for module, _ in fused:
                del module.forward
            for module, key, parameter in places:
                module._parameters[key] = parameter
            for parameter in asked:
                parameter.requires_grad_(True)

    def _stand_in(self, name: str, parameter: nn.Parameter) -> Watched:
        leaf = parameter.detach().requires_grad_(True)
        return Watched.of(self, parameter, leaf, {name: leaf}, alias=name)

    def untreated(self, func: Any, watched: list[Watched]) -> OstlightError:
        names = list(dict.fromkeys(name for one in watched for name in one.leaves))
        layers = [f"{name} (in {self._owner(name)})" for name in names]
        called = getattr(func, "__qualname__", None) or getattr(func, "__name__", str(func))
        return OstlightError(
            f"per-sample gradients: the parameter {' and '.join(layers)} is used by {called} in a way that is not "
            "treated; leave it out (option parameters), or use the estimator exact"
        )

    def _owner(self, name: str) -> str:
        path = name.rpartition(".")[0]
        module = self.model.get_submodule(path)
        return f"{path or 'the model'}, a {type(module).__name__}"


def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = _tensors(args) + _tensors(tuple(kwargs.values()))
    watched = [tensor for tensor in tensors if isinstance(tensor, Watched)]
    watch = watched[0].watch
    rule = RULES.get(func)
    if rule is not None and len(watched) < len(tensors):
        if not torch.is_grad_enabled():
            raise OstlightError(
                f"per-sample gradients: {' and '.join(one.label for one in watched)} is used with gradients switched "
                "off: inside torch.no_grad, a custom autograd function, or reentrant checkpointing (pass "
                "use_reentrant=False); leave it out (option parameters), or use the estimator exact"
            )
        result = rule(watch, func, args, kwargs)
        if result is not NotImplemented:
            return result
    others = [tensor for tensor in tensors if not isinstance(tensor, Watched)]
    if all(tensor.ndim == 0 for tensor in others) or func in (Tensor.type_as, Tensor.expand_as):
        return _derived(watch, func, args, kwargs, watched)
    plain = func(*_mapped(args, lambda one: one.plain), **_mapped(kwargs, lambda one: one.plain))
    if any(tensor.is_floating_point() for tensor in _tensors((plain,))):
        raise watch.untreated(func, watched)
    return plain


def _derived(watch: Watch, func: Any, args: Any, kwargs: Any, watched: list[Watched]) -> Any:
    """What is computed from parameters alone keeps its way back to them; a number or a shape needs none."""
    if func in EXPANSIONS:
        one = watched[0]
        plain = func(*_mapped(args, lambda w: w.plain), **kwargs)
        times = args[1:] if not isinstance(args[1], (tuple, list, torch.Size)) else args[1]
        if func is Tensor.repeat and (one.plain.shape[0] != 1 or any(time != 1 for time in times[1:])):
            raise watch.untreated(func, watched)
        return Watched.of(watch, plain, one.graph, one.leaves, expanded=True)
    with torch.enable_grad():
        graph = func(*_mapped(args, lambda one: one.graph), **_mapped(kwargs, lambda one: one.graph))
    made = [tensor for tensor in _tensors((graph,)) if tensor.requires_grad]
    if not made:
        return graph
    expanded = any(one.expanded for one in watched)
    same = func in SAME_VALUES
    if expanded and not same:
        raise watch.untreated(func, watched)
    leaves = {name: leaf for one in watched for name, leaf in one.leaves.items()}
    alias = watched[0].alias if same else None

    def wrap(tensor: Tensor) -> Watched:
        plain = func(*_mapped(args, lambda one: one.plain), **kwargs) if expanded else tensor
        return Watched.of(watch, plain, tensor, leaves, alias, expanded)

    if isinstance(graph, Tensor):
        return wrap(graph)
    return type(graph)(wrap(tensor) for tensor in graph)


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += _tensors(value)
    return found


def _mapped(values: Any, change: Callable[[Watched], Any]) -> Any:
    if isinstance(values, Watched):
        return change(values)
    if isinstance(values, dict):
        return {key: _mapped(value, change) for key, value in values.items()}
    if isinstance(values, torch.Size):
        return values
    if isinstance(values, (tuple, list)):
        return type(values)(_mapped(value, change) for value in values)
    return values


def plain_of(values: Any) -> Any:
    """The same arguments with every stand-in replaced by its value."""
    return _mapped(values, lambda one: one.plain)
