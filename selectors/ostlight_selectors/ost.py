"""One-Step-Train: rank samples by what one step on each does to the anchor loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ostlight.errors import BadRecord, SelectorError
from ostlight.gradients.scope import scoped_parameters
from ostlight.model.batch import Batch
from ostlight.selection.selector import Selector
from ostlight.selection.setting import Setting
from ostlight.utility.anchors import AnchorSet
from ostlight.utility.exact import Exact
from ostlight.utility.first_order import FirstOrder
from ostlight.utility.gradient import train_only
from ostlight.utility.step_size import eta_by_rule, first_adam_step

ESTIMATORS: dict[str, type[Exact] | type[FirstOrder]] = {"exact": Exact, "first_order": FirstOrder}


class OneStepTrain(Selector):
    """Utility of one SGD step on each sample, measured on the anchors (arXiv 2605.07488)."""

    uses_proxy = True

    @dataclass
    class Options:
        """Attributes:
        estimator: ``exact`` (the definition; a pass over all anchors per sample) or ``first_order``.
        scope: parameters the step changes: ``blocks``, ``last:N``, ``head``, ``all``, ``lora`` or a regular expression.
        eta: step size; ``null`` makes the median simulated step as long as the median step of the warm-up.
        """

        estimator: str = "exact"
        scope: str = "blocks"
        eta: float | None = None

    def setup(self, setting: Setting) -> None:
        setting.require_anchors("ost")
        options = self.options
        if options.estimator not in ESTIMATORS:
            raise SelectorError(
                f"selector.options.estimator must be one of {', '.join(ESTIMATORS)}; got {options.estimator!r}"
            )
        proxy = setting.proxy.model
        if options.estimator == "exact" and proxy.model.dtype.itemsize < 4:
            setting.say(
                f"exact: the proxy's {proxy.model.dtype} weights are raised to float32, or rounding swallows the step"
            )
            proxy.float()
        parameters = scoped_parameters(proxy.model, options.scope)
        anchors = AnchorSet.make(proxy, setting.anchors, setting.groups, setting.proxy.tokens_per_batch)
        if options.eta is not None and options.eta <= 0:
            raise SelectorError(f"selector.options.eta must be above 0; got {options.eta}")
        eta = options.eta
        if eta is None:
            train_only(proxy, parameters)
            length = setting.proxy.update_norm(parameters)
            told = "the warm-up's median update" if length is not None else "Adam's first update"
            length = first_adam_step(parameters, setting.proxy.lr) if length is None else length
            eta = eta_by_rule(proxy, parameters, list(setting.proxy.examples()), length)
            setting.say(f"eta = {eta:.4g}: the median simulated step is as long as {told} ({length:.3g})")
        count = sum(p.numel() for p in parameters.values())
        setting.say(f"utilities over {count:,} parameters (scope {options.scope}), {len(setting.anchors)} anchors")
        self.estimator = ESTIMATORS[options.estimator](proxy, parameters, anchors, eta)

    def score(self, batch: Batch) -> dict[str, Any]:
        rows = [self._one(single) for single in batch.singles()]
        return {name: [row.get(name) for row in rows] for name in {k: None for row in rows for k in row}}

    def _one(self, single: Batch) -> dict[str, Any]:
        try:
            return self.estimator.one(single)
        except BadRecord as error:
            return {"score": float("nan"), "failure": error}
