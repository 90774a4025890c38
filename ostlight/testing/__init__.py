"""For authors of selectors: ``check_selector`` in a test of yours, in one line."""

from ostlight.testing.conformance import check_selector

__all__ = ["check_selector"]
