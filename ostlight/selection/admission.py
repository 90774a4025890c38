"""A budget over samples of which some are admitted: those first, then the ones that come closest."""

from __future__ import annotations

import logging

import numpy as np


def admitted_first(admitted: np.ndarray, order: np.ndarray, closest: np.ndarray) -> np.ndarray:
    """All rows: the admitted ones in ``order``, then the others as in ``closest``.

    Args:
        admitted: ``[N]`` whether each row is.
        order: all rows, or at least the admitted ones.
        closest: all rows, those nearest to being admitted first.
    """
    return np.concatenate([order[admitted[order]], closest[~admitted[closest]]])


def warn_of_filling(log: logging.Logger, name: str, selected: np.ndarray, admitted: np.ndarray, by: str = "") -> None:
    """Logs a warning where rows that are not admitted fill a budget up.

    Args:
        log: of the selector.
        name: what admits, for the message.
        selected: rows.
        admitted: ``[N]`` whether each row is.
        by: who admits, for the message: `` by all parts``, say.
    """
    filled = int((~admitted[selected]).sum())
    if filled:
        log.warning(
            f"{name}: {filled:,} of {len(selected):,} selected samples are not admitted{by}: the budget is larger than "
            "what is admitted, and those closest to it fill it up"
        )
