from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ostlight.config.digitmath import TASKS, default_defects
from ostlight.digitmath.model import checkpoint
from ostlight.digitmath.tasks import ASKED_OF, PHRASES, PLACES, solve

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "digitmath.md"
DIGITS = (7, 5, 3, 8)


@pytest.mark.parametrize("task", TASKS)
def test_the_example_of_each_task_is_one_the_generator_makes(task: str):
    (row,) = (line for line in PAGE.read_text().splitlines() if line.startswith(f"| {task} |"))
    question, answer = (cell.strip(" `") for cell in row.split("|")[2:4])
    possible = {
        (phrase.format(place), solve(task, [DIGITS[cell] for cell in PLACES[place]]))
        for phrase in PHRASES[task]
        for place in ASKED_OF[task]
    }
    assert (question, answer) in possible


def test_the_rates_and_the_vocabulary_are_the_ones_in_the_code():
    text = PAGE.read_text()
    for defect, rate in default_defects().items():
        assert f"| {defect} | {rate:.0%} |" in text
    assert f"{len(AutoTokenizer.from_pretrained(checkpoint('proxy')))} tokens" in text


def test_the_examples_of_the_defects_are_what_the_rules_give():
    text = PAGE.read_text()
    assert solve("sum", [7, 5], doubled=True) in text
    assert solve("sum", [2, 5]) in text
