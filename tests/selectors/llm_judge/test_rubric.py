"""What a judge is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ostlight.data.sample import ImageRef, Sample, Turn
from ostlight.errors import ConfigError
from ostlight_selectors.llm_judge.rubric import Rubric

HEAD = 'user: "{question} {answer}"\n'


def picture(path: Path) -> ImageRef:
    Image.new("RGB", (2, 2)).save(path)
    return ImageRef(path=path)


def test_the_shipped_rubrics_read():
    default = Rubric.read("correctness")
    assert default.words == ["1", "2", "3", "4", "5"]
    assert default.values == [1, 2, 3, 4, 5]
    assert list(default.criteria) == ["reasoning", "final answer", "completeness"]
    assert Rubric.read("yes_no").values == [1, 0]


def test_pictures_stay_with_their_text(tmp_path: Path):
    one, two, three = (picture(tmp_path / f"{n}.png") for n in "abc")
    turns = (
        Turn("user", "<image> and <image>: which is red? {answer}"),
        Turn("assistant", "the first, see <image>", trained=True),
    )
    sample = Sample("s", turns, (one, two, three))
    asked = Rubric.read("correctness").conversation(sample, one_word=False)
    assert [t.role for t in asked.turns] == ["system", "user"]
    assert asked.images == (one, two, three)
    assert "and nothing else" in asked.turns[0].text
    assert "1, 2, 3, 4, 5" in asked.turns[0].text
    # A brace in the sample's own text is text.
    text = asked.turns[1].text
    assert text.index("which is red? {answer}\n---") < text.index("the first, see <image>\n---")
    file = tmp_path / "turned.yaml"
    scale = "scale: [{word: 1}, {word: 2}]\n"
    file.write_text('system: ""\nuser: "{answer} answers {question}"\n' + scale)
    turned = Rubric.read(str(file)).conversation(sample, one_word=True)
    assert turned.images == (three, one, two)
    assert turned.turns[0].text.count("<image>") == 3
    assert len(turned.turns) == 1


def test_several_turns_keep_their_roles():
    turns = (
        Turn("system", "be brief"),
        Turn("user", "1+1?"),
        Turn("assistant", "2", trained=True),
        Turn("user", "and 2+2?"),
        Turn("assistant", "4", trained=True),
    )
    text = Rubric.read("correctness").conversation(Sample("s", turns), one_word=False).turns[1].text
    assert "question begins ---\nSystem: be brief\n\nUser: 1+1?" in text
    assert "answer begins ---\nAssistant: 2\n\nUser: and 2+2?\n\nAssistant: 4" in text


def test_a_second_asking_shows_the_reply_and_what_is_wrong():
    sample = Sample("s", (Turn("user", "1+1?"), Turn("assistant", "2", trained=True)))
    unusable = ("five <image>", "no JSON object with a score in the reply")
    text = Rubric.read("correctness").conversation(sample, one_word=False, unusable=unusable).turns[1].text
    assert (
        text.index("Your last reply was:\n---")
        < text.index("\nfive [image]\n---")
        < text.index("cannot be used: no JSON")
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            HEAD + "scale: [{word: yes, value: 1}, {word: 'no', value: 0}]",
            r"scale\[0\].word must be .*; got True; put it in quotes",
        ),
        (HEAD + "scale: [{word: good}, {word: bad}]", r"scale\[0\].value is missing: 'good' is no number"),
        (HEAD + "scale: [{word: 1}]", "at least two bands"),
        (HEAD + "scale: [{word: 1}, {word: '1'}]", "the word '1' is there twice"),
        ("scale: [{word: 1}, {word: 2}]\nuser: '{question} {anwser}'", "unknown placeholder {anwser}; known"),
        ("scale: [{word: 1}, {word: 2}]\nuser: '{question}'", "{answer} is not in user"),
        (HEAD + "scale: [{word: 1}, {word: 2}]\nsystem: '{answer}'", "{answer} is in system; what is judged"),
        ("scales: []", "unknown key 'scales'; did you mean 'scale'"),
        ("scale: [{word: 1, means: <image>}, {word: 2}]", "<image> may not be in a rubric"),
        ("- 1", "must hold a mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_a_rubric_that_cannot_be_used_says_why(tmp_path: Path, text: str, says: str):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says.replace("{", r"\{").replace("}", r"\}")):
        Rubric.read(str(file))


def test_an_unknown_rubric_gets_the_list():
    with pytest.raises(ConfigError, match="no file 'corectness'; shipped are: correctness, yes_no"):
        Rubric.read("corectness")


def test_function_calls_and_the_functions_are_part_of_what_is_judged():
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "<image>Paris"}}}
    turns = (Turn("user", "what is 5+1?"), Turn("assistant", "", trained=True, tool_calls=(call,)))
    tools = ({"type": "function", "function": {"name": "get_weather"}},)
    asked = Rubric.read("correctness").conversation(Sample("s", turns, tools=tools), one_word=False)
    text = "\n".join(turn.text for turn in asked.turns)
    assert '{"name": "get_weather", "arguments": {"city": "\\u003cimage>Paris"}}' in text
    assert "Functions that may be called:" in text
    assert not asked.images
