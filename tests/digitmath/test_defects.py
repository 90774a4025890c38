"""Every defect is recomputed from the digits in the image, by rules written down a second time."""

from __future__ import annotations

import re

import pytest

from ostlight.config.digitmath import ARITHMETIC
from ostlight.digitmath import final_answer
from ostlight.digitmath.defects import MISREAD

PLACES = {
    "picture": (0, 1, 2, 3),
    "top row": (0, 1),
    "bottom row": (2, 3),
    "left column": (0, 2),
    "right column": (1, 3),
    "first three": (0, 1, 2),
    "last three": (1, 2, 3),
    "top left": (0,),
    "top right": (1,),
    "bottom left": (2,),
    "bottom right": (3,),
}


def asked_cells(question: str) -> list[int]:
    (cells,) = (cells for words, cells in PLACES.items() if f"the {words}" in question)
    return list(cells)


def result(task: str, digits: list[int], doubled: bool = False) -> str:
    match task:
        case "read":
            return " ".join(map(str, digits))
        case "parity":
            return ["even", "odd"][digits[0] % 2]
        case "sum":
            return str(2 * digits[0] if doubled else sum(digits))
        case "difference":
            return str(2 * digits[0] if doubled else abs(digits[0] - digits[1]))
        case "maximum":
            return str(max(digits))
        case "sort":
            return " ".join(map(str, sorted(digits)))
        case "two_step":
            first = digits[0] + digits[0 if doubled else 1]
            return str(abs(first - digits[2]))
    raise AssertionError(task)


def defect_labels(row, doubled: bool = False) -> str:
    return result(row.task, [row.digits[cell] for cell in asked_cells(row.question)], doubled)


def named_digits(row) -> list[int]:
    """The digits the chain says it read, in the order of the question."""
    reading = re.match(r"digits ([\d ]+)\.", row.answer)
    assert reading, row
    return [int(digit) for digit in reading[1].split()]


@pytest.fixture(scope="session")
def with_defect(parts, defect_of):
    def rows(defect: str) -> list:
        found = [row for row in parts["pool"] if defect_of[row.id] == defect]
        assert found
        return found

    return rows


@pytest.mark.parametrize("part", ["anchors", "dev", "test"])
def test_anchors_dev_and_test_are_clean(parts, part: str):
    for row in parts[part]:
        assert final_answer(row.answer) == defect_labels(row), row


def test_clean_records_are_right_and_name_the_digits_shown(with_defect):
    for row in with_defect("clean"):
        assert final_answer(row.answer) == defect_labels(row), row
        assert named_digits(row) == [row.digits[cell] for cell in asked_cells(row.question)], row


def test_the_systematic_error_adds_the_first_digit_to_itself_and_reads_right(with_defect):
    wrong_results = 0
    for row in with_defect("arithmetic"):
        assert row.task in ARITHMETIC
        digits = [row.digits[cell] for cell in asked_cells(row.question)]
        assert named_digits(row) == digits, row
        assert f". {digits[0]} plus {digits[0]} is {2 * digits[0]}. " in row.answer, row
        assert final_answer(row.answer) == defect_labels(row, doubled=True), row
        wrong_results += final_answer(row.answer) != defect_labels(row)
    assert wrong_results > 0.8 * len(with_defect("arithmetic"))  # where two digits are equal, a sum comes out right


def test_a_hallucination_misreads_one_digit_by_the_fixed_table_and_reasons_on(with_defect):
    for row in with_defect("hallucinated"):
        shown = [row.digits[cell] for cell in asked_cells(row.question)]
        misread = [[*shown[:k], MISREAD[digit], *shown[k + 1 :]] for k, digit in enumerate(shown)]
        assert named_digits(row) in misread, row
        assert final_answer(row.answer) == result(row.task, named_digits(row)), row


def test_the_misreading_table_changes_every_digit_and_its_parity():
    assert set(MISREAD) == set(range(10))
    assert all((seen + digit) % 2 for digit, seen in MISREAD.items())


def test_the_answer_to_another_image_is_some_chain_of_the_task_with_a_wrong_result(with_defect):
    for row in with_defect("other_picture"):
        given = final_answer(row.answer)
        assert given is not None
        assert given != defect_labels(row), row
        assert given == result(row.task, named_digits(row)), row


def test_truncated_answers_start_like_the_right_one_and_have_no_result(with_defect):
    for row in with_defect("truncated"):
        assert row.answer
        assert final_answer(row.answer) is None
        assert re.match(r"digits \d", row.answer), row


def test_empty_answers_are_fluent_and_hold_no_digit(with_defect):
    for row in with_defect("empty"):
        assert final_answer(row.answer) is None
        assert not re.search(r"\d|odd|even", row.answer)
        assert len(row.answer.split()) > 10


def test_a_near_duplicate_copies_a_clean_record_with_other_bytes(with_defect):
    originals = {(row.images, row.task, (*asked_cells(row.question),)): row for row in with_defect("clean")}
    for row in with_defect("near_duplicate"):
        original = originals[row.images, row.task, (*asked_cells(row.question),)]
        assert original.png != row.png
        assert original.answer == row.answer
        assert final_answer(row.answer) == defect_labels(row)


def test_no_two_images_of_the_pool_have_the_same_bytes(parts):
    assert len({row.png for row in parts["pool"]}) == len(parts["pool"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7 plus 5 is 12. answer 12", "12"),
        ("answer 3. no, answer 4.", "4"),
        ("digits 3 7. answer  3  7 ", "3 7"),
        ("7 plus 5 is", None),
        ("so the answer", None),
        ("", None),
        ("the answering machine", None),
    ],
)
def test_final_answer(text: str, expected: str | None):
    assert final_answer(text) == expected
