"""A class without a source file, as in a notebook, is known by its compiled code."""

from __future__ import annotations

import subprocess
import sys
import types
from typing import Any

import pytest

from ostlight.pipeline.fingerprint import of_class

CELL = """
import re
from dataclasses import dataclass, field
from functools import cached_property

WEIGHT, WORDS, PATTERN = 2.0, {"one", "two", "three"}, re.compile("a+")

def helper(text):
    '''Of a text.'''
    return len(text) * WEIGHT

class Base:
    def scale(self):
        return 3

class Mine(Base):
    '''What it does.'''

    @dataclass
    class Options:
        length: int = 5
        names: list = field(default_factory=list)

    @cached_property
    def words(self):
        return [w for w in WORDS if PATTERN.match(w)]

    @staticmethod
    def third(x, y=1):
        return (lambda z: z + y)(x)

    def score(self, batch):
        return [helper(s) * self.scale() if s in ("x", "y") else self.third(s) for s in batch]
"""


def digest(source: str) -> str:
    module: Any = types.ModuleType("a_notebook")
    sys.modules["a_notebook"] = module
    try:
        exec(compile(source, "<cell>", "exec", dont_inherit=True), module.__dict__)
        return of_class(module.Mine)
    finally:
        del sys.modules["a_notebook"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("WEIGHT, WORDS, PATTERN = 2.0", "WEIGHT, WORDS, PATTERN = 2.5"),
        ('"three"', '"four"'),
        ('compile("a+")', 'compile("a*")'),
        ("len(text) *", "len(text) +"),
        ("return 3", "return 4"),
        ("length: int = 5", "length: int = 6"),
        ("if PATTERN", "if not PATTERN"),
        ("y=1", "y=2"),
        ("z + y", "z - y"),
        ('("x", "y")', '("x", "z")'),
        ("else self.third(s)", "else self.scale()"),
    ],
)
def test_a_change_of_what_it_does_changes_it(old: str, new: str) -> None:
    assert old in CELL
    assert digest(CELL.replace(old, new)) != digest(CELL)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("What it does.", "What it does, in other words."),
        ("Of a text.", "Of any text."),
        ("def helper", "# more\n\ndef helper"),
    ],
)
def test_words_and_lines_do_not(old: str, new: str) -> None:
    assert old in CELL
    assert digest(CELL.replace(old, new)) == digest(CELL)


def test_it_is_the_same_in_another_process() -> None:
    code = f"""
import sys, types
from ostlight.pipeline.fingerprint import of_class
module = types.ModuleType("a_notebook")
sys.modules["a_notebook"] = module
exec(compile({CELL!r}, "<cell>", "exec"), module.__dict__)
print(of_class(module.Mine))
"""
    for seed in ("1", "2"):
        ran = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True)
        assert ran.stdout.strip() == digest(CELL), ran.stderr
