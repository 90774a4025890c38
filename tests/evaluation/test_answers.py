"""Final answers are extracted, and compared by question type."""

from __future__ import annotations

import pytest

from ostlight.evaluation.answers import final_answer, is_correct, option_chosen, options_of, question_type, same_answer


@pytest.mark.parametrize(
    ("text", "marker", "answer"),
    [
        ("3 + 4 = 7 answer 7", "answer", "7"),
        ("answer 3, no: Answer: answer: 8.", "answer", "8"),
        ("no marker here", "answer", None),
        ("cut off at the answer", "answer", None),
        ("thus result: 5", "result", "5"),
        ("  horse ", None, "horse"),
        ("   ", None, None),
        (r"so \boxed{6} no \boxed{ 7 } it is", None, "7"),
        (r"so \boxed{\frac{1}{2}}.", None, r"\frac{1}{2}"),
        (r"\boxed{6}, better \boxed{\frac{1}{", None, "6"),
        (r"\boxed{\boxed{7}}", None, "7"),
        (r"\boxed{}", None, None),
        ("Answer:12", "answer", "12"),
        ("Answer=12", "answer", "12"),
        ("**Answer**: 12", "answer", "12"),
        ("**Answer:** 12", "answer", "12"),
        ("**Answer: 12**", "answer", "12"),
        ("**Answer: 12", "answer", "12"),
        ("answer **12**.", "answer", "12"),
        ("answer 2**3", "answer", "2**3"),
        ("answer *", "answer", "*"),
        ("answer .5", "answer", ".5"),
        ("answer = .5.", "answer", ".5"),
        ("answer ... 5", "answer", "5"),
        ("the answer's 3, answer.py says 4", "answer", None),
        ("answers: 3", "answer", None),
        ("so #### 72", "####", "72"),
        ("The final\nanswer is 3", "final answer is", "3"),
        ("**B**", None, "B"),
    ],
)
def test_the_final_answer_follows_the_last_marker(text: str, marker: str | None, answer: str | None):
    assert final_answer(text, marker) == answer


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        ("7", "7.0", True),
        ("1,024", "1024", True),
        ("1/2", "0.5", True),
        ("07", "7", True),
        ("1 2", "12", False),
        ("78", "7 8", False),
        ("23", "2, 3", False),
        ("15", "1,5", False),
        ("1,5", "1,5", True),
        ("10 000", "10000", True),
        ("1,024.5", "1024.5", True),
        ("2024", "20, 24", False),
        ("1 1/2", "1.5", True),
        ("5.5", "1 1/2", False),
        ("-1 1/2", "-1.5", True),
        (r"1\frac{1}{2}", "1.5", True),
        ("- 7", "-7", True),
        ("7", "8", False),
        ("Horse.", "horse", True),
        ("7", "seven", False),
        (None, "7", False),
        ("1/0", "1/0", True),
        (".5", "0.5", True),
        ("-.5", "\u22120.5", True),
        ("\u22127", "-7", True),
        ("\u22127", "7", False),
        (r"\frac{1}{2}", "0.5", True),
        (r"-\dfrac{3}{4}", "-0.75", True),
        (".", "0", False),
    ],
)
def test_numbers_compare_as_numbers_and_text_as_text(given: str | None, expected: str, same: bool):
    assert same_answer(given, expected) is same


def test_a_missing_answer_is_wrong():
    assert not is_correct(None, "8", {})
    assert not is_correct(None, "B", {"A": "7", "B": "8"})


@pytest.mark.parametrize(
    "question",
    [
        "Which animal? (A) a cow (B) a horse (C) 12",
        "Which animal?\nA. a cow\nB. a horse\nC. 12",
        "Which animal? Choices: A) a cow B) a horse C) 12.",
        "Which animal?\n(a) A cow\n(b) A horse\n(c) 12",
    ],
)
def test_options_are_read_from_the_question(question: str):
    assert options_of(question) == {"A": "a cow", "B": "a horse", "C": "12"}


@pytest.mark.parametrize("question", ["What is seen?", "In (A) there is one", "See B. and C. there", "Is A: good?"])
def test_letters_that_are_no_options(question: str):
    assert options_of(question) == {}


@pytest.mark.parametrize("form", ["{}. {}", "({}) {}", "{}: {}"])
def test_a_question_may_have_ten_options(form: str):
    texts = ["cow", "horse", "12", "x", "U. of Y", "f (x)", "seven", "eight", "nine", "ten"]
    letters = [chr(ord("A") + k) for k in range(10)]
    question = "Is (x) or (n) what I. Newton saw?\n" + "\n".join(map(form.format, letters, texts))
    options = options_of(question)
    assert options == dict(zip(letters, ("cow", "horse", "12", "x", "u. of y", "f (x)", *texts[6:]), strict=True))
    assert is_correct(f"{letters[9]}. ten", "J", options)
    assert is_correct("ten", "J", options)
    assert option_chosen("the answer is (I)", options) == "I"
    assert option_chosen("I. ten", options) is None
    assert not is_correct("H", "I", options)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("(b)", "B"), ("b.", "B"), ("B. a horse", "B"), ("(B) A horse.", "B"), ("a horse", "B"),
        ("12.0", "C"), ("A", "A"), ("B. a cow", None), ("a dog", None), ("D", None), (None, None), ("a bat", None),
        ("The answer is B", "B"), ("the answer is: (b).", "B"), ("**B**", "B"), ("The answer is **B**", "B"),
        ("Option B", "B"), ("The correct choice is B. a horse", "B"), ("The answer is a horse.", "B"),
        ("Answer: C", "C"), ("The answer is not B", None), ("The answer is B or C", None), ("The answer is", None),
        ("The answer is B. a cow", None), ("The answer is a dog", None), ("B. the wrong answer", None),
        ("It is not option B", None), ("It isn't the answer: B", None), ("The wrong choice is B", None),
        ("It is not A, so the answer is B", "B"), ("Option A is wrong. The answer is B", "B"),
    ],
)  # fmt: skip
def test_the_option_an_answer_means(answer: str | None, letter: str | None):
    assert option_chosen(answer, {"A": "a cow", "B": "a horse", "C": "12"}) == letter


def test_answers_are_compared_by_question_type():
    options = {"A": "7", "B": "8"}
    questions = [("(B)", "8", options), ("7.0", "7", {}), ("Horse", "horse", {}), ("8", "9", {}), (None, "cow", {})]
    types = [question_type(expected, offered) for _, expected, offered in questions]
    assert types == ["choice", "numeric", "exact", "numeric", "exact"]
    assert [is_correct(*question) for question in questions] == [True, True, True, False, False]


@pytest.mark.parametrize(
    "question",
    [
        "Which?\nA. cow\nB. dog\nAnswer with the option's letter from the given choices directly.",
        "Which? (A) cow (B) dog\n<image>",
        "Example?\nA. red\nB. blue\nC. green\nB. blue\nWhich?\nA. cow\nB. dog",
    ],
)
def test_the_last_option_ends_with_its_line_and_the_last_list_counts(question: str):
    assert options_of(question) == {"A": "cow", "B": "dog"}
    assert is_correct("B. dog", "B", options_of(question))
    assert question_type("B. dog", options_of(question)) == "choice"


def test_options_of_several_lines_keep_them():
    assert options_of("Which?\nA. x = 1\ny = 2\nB. x = 2\ny = 1") == {"A": "x = 1 y = 2", "B": "x = 2 y = 1"}


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        (".5 kg", "5 kg", False),
        (".5 kg", "0.5 kg", True),
        ("?", "!", False),
        ("?", "?", True),
        ("1,200 km", "1200 km", True),
        ("50%", "50 %", True),
        ("50%", "50", False),
        ("5 kg", "5 km", False),
        ("1:30 pm", "1.30 pm", False),
        ("a dog.", '"A dog"', True),
    ],
)
def test_units_and_punctuation(given: str, expected: str, same: bool):
    assert same_answer(given, expected) is same
    assert same_answer(expected, given) is same


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("It cannot be option A", None),
        ("Neither option A", None),
        ("No option A", None),
        ("I would rule out option A", None),
        ("Anything except option A", None),
        ("Anything but option A", None),
        ("There is no doubt that the answer is A", "A"),
        ("It is hard, but the answer is A", "A"),
    ],
)
def test_an_option_that_is_ruled_out_is_not_chosen(answer: str, letter: str | None):
    assert option_chosen(answer, {"A": "a cow", "B": "a horse"}) == letter
