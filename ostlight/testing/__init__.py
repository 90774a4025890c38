"""``check_selector`` tests a selector against the contract, in one line."""

from ostlight.testing.conformance import check_selector

__all__ = ["check_selector"]
