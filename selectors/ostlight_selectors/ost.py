"""One-Step-Train: rank samples by what one step on each does to the anchor loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ostlight.errors import SelectorError
from ostlight.gradients.scope import scoped_parameters
from ostlight.model.batch import Batch
from ostlight.selection.selector import Selector
from ostlight.selection.setting import Setting
from ostlight.utility.anchors import AnchorSet
from ostlight.utility.exact import Exact
from ostlight.utility.gradient import train_only
from ostlight.utility.sketched import Sketched
from ostlight.utility.step_size import eta_by_rule, first_adam_step

ESTIMATORS = ("exact", "first_order", "second_order")


class OneStepTrain(Selector):
    """Utility of one SGD step on each sample, measured on the anchors (arXiv 2605.07488)."""

    uses_proxy = True

    @dataclass
    class Options:
        """Attributes:
        estimator: ``exact`` (the definition; a pass over all anchors per sample), ``second_order`` (slope and sketched
            curvature, about one training step per sample) or ``first_order`` (slope alone).
        scope: parameters the step changes: ``blocks``, ``last:N``, ``head``, ``all``, ``lora`` or a regular expression.
        eta: step size; ``null`` makes the median simulated step as long as the median step of the warm-up.
        probes: curvature probes of ``second_order``.
        """

        estimator: str = "exact"
        scope: str = "blocks"
        eta: float | None = None
        probes: int = 64

    def setup(self, setting: Setting) -> None:
        setting.require_anchors("ost")
        options = self.options
        if options.estimator not in ESTIMATORS:
            raise SelectorError(
                f"selector.options.estimator must be one of {', '.join(ESTIMATORS)}; got {options.estimator!r}"
            )
        for name in ("eta", "probes"):
            value = getattr(options, name)
            if value is not None and value <= 0:
                raise SelectorError(f"selector.options.{name} must be above 0; got {value}")
        proxy = setting.proxy.model
        if options.estimator == "exact" and proxy.model.dtype.itemsize < 4:
            setting.say(f"exact: {proxy.model.dtype} weights are raised to float32, or rounding swallows the step")
            proxy.float()
        parameters = scoped_parameters(proxy.model, options.scope)
        anchors = AnchorSet.make(proxy, setting.anchors, setting.groups, setting.proxy.tokens_per_batch)
        eta = options.eta or self._eta(setting, parameters)
        count = sum(p.numel() for p in parameters.values())
        setting.say(f"utilities over {count:,} parameters (scope {options.scope}), {len(setting.anchors)} anchors")
        self.estimator = self._estimator(setting, parameters, anchors, eta)

    def _eta(self, setting: Setting, parameters: Mapping[str, nn.Parameter]) -> float:
        model = setting.proxy.model
        train_only(model, parameters)
        length = setting.proxy.update_norm(parameters)
        told = "the warm-up's median update" if length is not None else "Adam's first update"
        length = first_adam_step(parameters, setting.proxy.lr) if length is None else length
        eta = eta_by_rule(model, parameters, list(setting.proxy.examples()), length)
        setting.say(f"eta = {eta:.4g}: the median simulated step is as long as {told} ({length:.3g})")
        return eta

    def _estimator(
        self, setting: Setting, parameters: Mapping[str, nn.Parameter], anchors: AnchorSet, eta: float
    ) -> Exact | Sketched:
        model = setting.proxy.model
        if self.options.estimator == "exact":
            return Exact(model, parameters, anchors, eta)
        probes = self.options.probes if self.options.estimator == "second_order" else 0
        sketched = Sketched(model, parameters, anchors, eta, probes, setting.seed)
        setting.say(f"target vectors: {sketched.target_bytes / 2**20:.1f} MiB")
        example = next(setting.proxy.examples(), None)
        if example is not None:
            sketched.verify(example)
        return sketched

    def score(self, batch: Batch) -> dict[str, Any]:
        return self.estimator.columns(batch)
