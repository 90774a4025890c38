"""What a selector is given before it scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ostlight.errors import SelectorError

if TYPE_CHECKING:
    from ostlight.data.sample import Sample
    from ostlight.model.module import MultimodalModel


@dataclass
class Setting:
    """Everything a selector may know beyond the batch in hand.

    Attributes:
        anchors: the trusted samples; empty where the configuration names none.
        groups: the group of each anchor, as long as ``anchors``; all equal where no grouping was asked for.
        seed: the run's seed.
        folder: a folder of the run that is the selector's own, for caches.
        say: prints one line for the user, once, not once a rank.
    """

    anchors: list[Sample]
    groups: list[str]
    seed: int
    folder: Path
    say: Callable[[str], None]
    _proxy: MultimodalModel | None = None

    @property
    def proxy(self) -> MultimodalModel:
        """The proxy model, warmed up, in eval mode, on this rank's device.

        Raises:
            SelectorError: the selector did not declare ``uses_proxy = True``.
        """
        if self._proxy is None:
            raise SelectorError(
                "this selector asks for a proxy but does not declare it; set `uses_proxy = True` in its class"
            )
        return self._proxy

    def require_anchors(self, selector: str) -> None:
        """Raises:
        SelectorError: there is no anchor.
        """
        if not self.anchors:
            raise SelectorError(
                f"selector {selector!r} needs anchors; name a file of trusted samples under `anchors.path`"
            )
