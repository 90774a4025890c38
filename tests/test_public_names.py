"""What `from ostlight import *` and tab completion offer."""

from __future__ import annotations

from importlib import import_module

import pytest

import ostlight
from ostlight import errors


@pytest.mark.parametrize("package", ["ostlight", "ostlight.config", "ostlight.influence", "ostlight.testing"])
def test_public_names_exist_and_are_listed(package: str) -> None:
    module = import_module(package)
    assert module.__all__ == sorted(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert {*module.__all__} <= {*dir(module)}


def test_every_error_is_exported() -> None:
    raised = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert raised <= {*ostlight.__all__}
    assert all(getattr(ostlight, name) is getattr(errors, name) for name in raised)
