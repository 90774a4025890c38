"""The contract of a selector, as a test."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ostlight.selection.registry import load
from ostlight.selection.selector import Selector
from ostlight.testing.checks import Checks
from ostlight.testing.pools import Pools
from ostlight.testing.runs import Runs


def check_selector(
    cls: type[Selector] | str,
    options: Mapping[str, Any] | None = None,
    *,
    tolerance: float = 1e-6,
    processes: bool = True,
    folder: Path | None = None,
) -> None:
    """Checks a selector against its contract on a small built-in pool, a tenth of it broken; for a test of yours::

        def test_it_keeps_the_contract():
            check_selector(MySelector)

    What is checked: options come from YAML and back; every record is accounted for, the broken ones with their reasons;
    columns keep one type; a second run, other batches, another order, a stopped and a killed run and two ranks give the
    same table; a sample that fails is set aside and leaves the others as they were; ``select`` stays within every
    kind of budget and gives the same from the stored table alone; nothing breaks on a pool without a usable record.
    The proxy is a small vision-language model in float64 on the CPU, without a warm-up.

    Args:
        cls: the class, or the name it is registered by.
        options: as in ``selector.options`` of a configuration; those a selector cannot do without.
        tolerance: how far numbers of two runs may lie apart, as a part of their column's largest. Raise it for a
            selector that computes in lower precision on its own.
        processes: whether to kill a run and take it up with two ranks, in processes of their own (gloo, on the CPU):
            most of the time this check takes.
        folder: for the runs; by default one that is removed.

    Raises:
        AssertionError: what is violated and how to mend it, all violations at once.
    """
    tested = load(cls) if isinstance(cls, str) else cls
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="check-selector-")))
        place.mkdir(parents=True, exist_ok=True)
        runs = Runs(tested, dict(options or {}), place / tested.__name__, Pools.make(place / "pools"))
        runs.folder.mkdir(exist_ok=True)
        checks = Checks(runs, tolerance)
        violations = checks.violations(processes=processes)
    if violations:
        told = "\n".join(f"  - {violation}" for violation in violations)
        raise AssertionError(f"{tested.__name__} breaks the contract of a selector:\n{told}") from checks.cause
