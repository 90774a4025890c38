"""One line for the user, from the first rank only."""

from __future__ import annotations

from rich.console import Console

from ostlight.data.sanitize import harmless
from ostlight.pipeline.run_folder import is_first_rank

console = Console(highlight=False)


def say(line: str) -> None:
    """Prints a line as it is; square brackets in data are no markup."""
    if is_first_rank():
        console.print(harmless(line), markup=False, soft_wrap=True)
