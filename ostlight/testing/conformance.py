"""The contract of a selector, as one test."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ostlight.selection.registry import load
from ostlight.selection.selector import Selector
from ostlight.testing.checks import ContractCheck
from ostlight.testing.pools import PoolFiles
from ostlight.testing.runner import SelectorRunner


def check_selector(
    cls: type[Selector] | str,
    options: Mapping[str, Any] | None = None,
    *,
    tolerance: float = 1e-6,
    processes: bool = True,
    folder: Path | None = None,
) -> None:
    """Checks a selector against the contract, on a small built-in pool of which a tenth is broken. In your tests::

        def test_contract():
            check_selector(MySelector)

    The check runs the selector several times and verifies that

    - options can be written as YAML and read back;
    - every record is accounted for, and broken records are rejected with their reasons;
    - columns keep one type, and none holds NaN for a scored sample;
    - scores differ from each other, where the selector ranks by them;
    - a second run, other batches, another order, an interrupted run, and a killed run resumed on two ranks
      all give the same score table, and another seed much the same, unless the class says ``stochastic``;
    - a sample whose scoring fails is rejected and changes no other sample's score;
    - ``select`` stays within every kind of budget, keeps no more of a stratum than its share, and repeats itself on the
      stored score table; no score reads an option of ``selection_options``;
    - a pool without a usable record is handled.

    The proxy is a small vision-language model in float64 on the CPU, without warm-up.

    Args:
        cls: the class, or the name it is registered under.
        options: ``selector.options`` of the configuration, if the selector needs any; what they leave out is taken from
            the class's ``check_options``.
        tolerance: largest difference between numbers of two runs, as a fraction of the larger one or of the column's
            median. Raise it for a selector that computes in lower precision.
        processes: whether to also kill a run and resume it on two ranks, in processes of their own (gloo, CPU). This
            takes most of the time of the check.
        folder: for the runs; by default a temporary one.

    Raises:
        AssertionError: lists all violations, each with how to fix it.
    """
    tested = load(cls) if isinstance(cls, str) else cls
    with ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="check-selector-")))
        runs = root / tested.__name__
        runs.mkdir(parents=True, exist_ok=True)
        given = {**tested.check_options, **(options or {})}
        check = ContractCheck(SelectorRunner(tested, given, runs, PoolFiles.create(root / "pools")), tolerance)
        violations = check.find_violations(processes=processes)
    if violations:
        listed = "\n".join(f"  - {violation}" for violation in violations)
        raise AssertionError(f"{tested.__name__} violates the selector contract:\n{listed}") from check.cause
