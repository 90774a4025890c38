"""Tables of any columns: the mapping of a configuration, and CSV and TSV files."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from ostlight.config.schema import Columns
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.data.subset import write_subset
from ostlight.errors import BadRecord, DataError


def test_columns_of_any_names(images: Path, shade: Callable, jsonl: Callable) -> None:
    record = {"hint": "Look.", "query": "What?", "response": "That.", "photo": "pics/2.png", "level": 3}
    columns = Columns(question=["hint", "query"], answer="response", images="photo")
    sample = Pool.open(jsonl(record), columns=columns)[0]
    assert [turn.text for turn in sample.turns] == ["<image>\nLook.\nWhat?", "That."]
    assert shade(sample.images[0]) == 2
    assert sample.tags == {"level": "3"}


def test_choices_and_nested_columns(jsonl: Callable) -> None:
    record = {"q": {"text": "Which?"}, "options": ["red", "blue"], "label": 1}
    columns = Columns(question="q.text", choices="options", answer="label")
    assert [turn.text for turn in Pool.open(jsonl(record), columns=columns)[0].turns] == [
        "Which?\nA. red\nB. blue",
        "B",
    ]
    (_, bad), *_ = Pool.open(jsonl({**record, "label": 2}), columns=columns).read([0])
    assert isinstance(bad, BadRecord)
    assert bad.field == "label"


@pytest.mark.parametrize(
    ("choices", "label", "answer"),
    [
        (["red", "blue", "green"], 2.0, "C"),  # a table with a missing value
        (["red", "blue", "green"], "2", "C"),  # a file of texts
        (["red", "blue", "green"], "blue", "blue"),
        (["red", "blue", "green"], "2.0", "C"),
        (["4", "2", "3"], "4", "4"),  # no number of a choice
        (["1", "2", "3"], "2", None),  # B by its text, C by its number
        ([1, 2, 3], 2, None),
        (["1", "2", "3"], 2, "C"),  # a number among texts
        ([0, 1, 2], 2, "C"),
        (["red", "blue", "green"], "3", None),
        ([], 12.0, "12"),
        ([], 12.5, "12.5"),
        ([], "12.0", "12.0"),
    ],
)
def test_numbers_in_any_spelling_name_the_same_choice(jsonl: Callable, choices: list, label: Any, answer: str) -> None:
    columns = Columns(question="q", answer="label", choices="options" if choices else None)
    ((_, read),) = Pool.open(jsonl({"q": "Which?", "options": choices, "label": label}), columns=columns).read([0])
    assert (read.field if isinstance(read, BadRecord) else read.answer) == (answer or "label")


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_classes_are_read_by_their_names(tmp_path: Path, kind: str) -> None:
    features = datasets.Features({"q": datasets.Value("string"), "label": datasets.ClassLabel(names=["cat", "dog"])})
    table = datasets.Dataset.from_dict({"q": ["Which?"] * 3, "label": [1, 0, -1]}, features=features)
    path = tmp_path / ("t.parquet" if kind == "parquet" else "t")
    table.to_parquet(path) if kind == "parquet" else table.save_to_disk(path)
    pool = Pool.open(path, columns=Columns(question="q", answer="label"))
    read = [read for _, read in pool.read(range(3))]
    assert [sample.answer for sample in read[:2]] == ["dog", "cat"]
    assert isinstance(read[2], BadRecord)
    assert [sample.tags["label"] for sample in (Pool.open(path, columns=Columns(question="q", answer="q"))[0],)] == [
        "dog"
    ]


def test_a_question_that_is_missing_is_refused(jsonl: Callable) -> None:
    columns = Columns(question="query", answer="answer")
    pool = Pool.open(jsonl({"query": "Which?", "answer": "a"}, {"query": None, "answer": "b"}), columns=columns)
    read = dict(pool.read([0, 1]))
    assert read[0].turns[0].text == "Which?"
    assert read[1].field == "query"


@pytest.mark.parametrize("field", ["choices", "options", "context", "passage", "hint"])
def test_a_part_of_the_question_that_no_layout_reads_is_refused(jsonl: Callable, field: str) -> None:
    asked = {"question": "Which colour?", "answer": "B"}
    value = ["red", "blue"] if field in ("choices", "options") else "a text"
    pool = Pool.open(jsonl(asked, {**asked, field: value}, {**asked, field: ""}))
    read = dict(pool.read([0, 1, 2]))
    assert read[1].field == field
    assert read[0].turns == read[2].turns
    suggested = yaml.safe_load(read[1].detail.partition("columns: ")[2].partition("; to leave")[0])
    given = Pool.open(pool.sources[0].path, columns=Columns(**suggested))[1]
    assert given.turns[0].text in ("Which colour?\nA. red\nB. blue", "a text\nWhich colour?")
    assert given.answer == "B"


def test_a_column_of_turns_and_an_answer_alone(images: Path, jsonl: Callable) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert Pool.open(jsonl({"dialog": turns}), columns=Columns(messages="dialog"))[0].answer == "b"
    caption = Pool.open(jsonl({"txt": "A cat.", "jpg": "pics/0.png"}), columns=Columns(answer="txt", images="jpg"))[0]
    assert [turn.text for turn in caption.turns] == ["<image>\n", "A cat."]


def test_an_unknown_column_names_the_nearest(jsonl: Callable) -> None:
    path = jsonl({"query": "a", "response": "b"})
    with pytest.raises(DataError, match="'query'") as caught:
        Pool.open(path, columns=Columns(question="qery", answer="response"))
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("record", "suggested"),
    [
        ({"query": "a", "response": "b", "images": []}, "columns: {question: query, answer: response, images: images}"),
        ({"dialog": [], "image": "x"}, "columns: {messages: dialog, images: image}"),
        ({"weird": "a", "odd": "b"}, "columns: {question: COLUMN, answer: COLUMN}"),
    ],
)
def test_an_unknown_layout_is_refused_with_a_mapping_that_may_fit(
    jsonl: Callable, record: dict[str, Any], suggested: str
) -> None:
    with pytest.raises(DataError) as caught:
        Pool.open(jsonl(record))
    assert f"`{suggested}`" in str(caught.value)


def test_a_number_as_answer_is_refused_until_it_is_mapped(jsonl: Callable) -> None:
    path = jsonl({"question": "Which?", "choices": ["a", "b"], "answer": 1})
    (_, bad), *_ = Pool.open(path).read([0])
    assert isinstance(bad, BadRecord)
    assert (bad.reason, bad.field) == ("bad_field", "answer")
    columns = Columns(question="question", choices="choices", answer="answer")
    assert Pool.open(path, columns=columns)[0].answer == "B"
    without = Columns(question="question", answer="answer")
    assert Pool.open(path, columns=without)[0].answer == "1"


CSV = 'image,question,answer\npics/0.png,"What,\nnow?",red\n\npics/1.png,5" pipe?,"say ""no"""\n,text?,yes\nshort,row\n'


def test_a_csv_file_reads_and_its_subset_keeps_the_rows(images: Path, shade: Callable) -> None:
    path = images / "pool.csv"
    path.write_bytes(b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode())
    pool = Pool.open(path)
    found = [record for _, record in pool.read(range(len(pool)))]
    assert [s.answer for s in found[:3] if isinstance(s, Sample)] == ["red", 'say "no"', "yes"]
    assert isinstance(found[0], Sample)
    assert found[0].turns[0].text == "<image>\nWhat,\r\nnow?"
    assert isinstance(found[2], Sample)
    assert found[2].images == ()
    assert isinstance(found[3], BadRecord)
    assert found[3].reason == "bad_row"
    assert len(found) == 4

    (written,) = write_subset(pool, [2, 0], images / "subset")
    again = Pool.open(written)
    assert [again[n].turns for n in range(2)] == [pool[n].turns for n in (2, 0)]
    assert shade(again[1].images[0]) == 0


def test_images_of_columns_that_are_not_mapped_stay(images: Path, shade: Callable, jsonl: Callable) -> None:
    columns = Columns(question="query", answer="response")
    path = jsonl({"query": "q", "response": "a", "images": ["pics/2.png"]})
    assert [shade(image) for image in Pool.open(path, columns=columns)[0].images] == [2]


@pytest.mark.parametrize("mapped", [None, "file_name"])
def test_the_metadata_file_of_a_folder_of_images_with_columns(
    images: Path, shade: Callable, mapped: str | None
) -> None:
    (images / "pics" / "metadata.csv").write_text("file_name,text\n3.png,a cat\n")
    sample = Pool.open(images / "pics", columns=Columns(answer="text", images=mapped))[0]
    assert [shade(image) for image in sample.images] == [3]
    assert sample.answer == "a cat"


def test_the_names_in_a_header_have_no_spaces_around_them(tmp_path: Path) -> None:
    path = tmp_path / "pool.csv"
    path.write_text("question , answer\nq,a\n")
    assert Pool.open(path)[0].answer == "a"


def test_a_stray_quote_costs_its_own_row_only(tmp_path: Path) -> None:
    rows = ["question,answer", 'q1,"never closed', "q2,a2", "q3,a3", 'q4,5" wide', "q5,a5"]
    path = tmp_path / "pool.csv"
    path.write_text("\n".join(rows) + "\n")
    pool = Pool.open(path)
    found = [record for _, record in pool.read(range(len(pool)))]
    assert [getattr(record, "reason", "read") for record in found] == ["bad_row", "read", "read", "read", "read"]


@pytest.mark.parametrize(
    ("suffix", "delimiter"), [(".tsv", "\t"), (".csv", ";"), (".csv", ","), (".csv", "\t"), (".csv", "|")]
)
def test_delimiters_and_images_in_base64(
    tmp_path: Path, shade: Callable, png: Callable, suffix: str, delimiter: str
) -> None:
    path = tmp_path / f"pool{suffix}"
    rows = [["index", "image", "question", "A", "B", "answer"]]
    rows += [["7", base64.b64encode(png(4)).decode(), "Which?", "red", "blue", "B"]]
    path.write_text("\n".join(delimiter.join(row) for row in rows))
    columns = Columns(question="question", choices=["A", "B"], answer="answer", images="image")
    sample = Pool.open(path, columns=columns)[0]
    assert [turn.text for turn in sample.turns] == ["<image>\nWhich?\nA. red\nB. blue", "B"]
    assert (shade(sample.images[0]), sample.tags) == (4, {"index": "7"})


def test_the_metadata_file_of_a_folder_of_images(images: Path, shade: Callable, jsonl: Callable) -> None:
    (images / "pics" / "metadata.jsonl").write_text('{"file_name": "3.png", "question": "q", "answer": "a"}\n')
    sample = Pool.open(images / "pics")[0]
    assert shade(sample.images[0]) == 3
    elsewhere = Pool.open(jsonl({"file_name": "pics/3.png", "question": "q", "answer": "a"}))[0]
    assert elsewhere.images == ()
    assert elsewhere.tags == {"file_name": "pics/3.png"}


@pytest.mark.parametrize("first", ["not JSON", '{"broken": ', "null", "[1, 2]", '{"long": "' + "x" * 100_000 + '"}'])
def test_json_lines_in_a_json_file_with_any_first_line(tmp_path: Path, first: str) -> None:
    path = tmp_path / "pool.json"
    path.write_text(first + '\n{"question": "q", "answer": "a"}\n{"question": "r", "answer": "b"}\n')
    pool = Pool.open(path)
    assert len(pool) == 3
    assert [s.answer for _, s in pool.read(range(3)) if isinstance(s, Sample)] == ["a", "b"]


def test_an_array_of_one_record_a_line_stays_an_array(tmp_path: Path) -> None:
    path = tmp_path / "pool.json"
    path.write_text('[\n{"question": "q", "answer": "a"},\n{"question": "r", "answer": "b"}\n]\n')
    assert [s.answer for _, s in Pool.open(path).read(range(2)) if isinstance(s, Sample)] == ["a", "b"]


def test_an_array_in_one_line_of_a_jsonl_file_is_an_array(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text('[{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]')
    assert [s.answer for _, s in Pool.open(path).read(range(2)) if isinstance(s, Sample)] == ["a", "b"]


def test_a_list_of_data_sets_says_how_to_name_them(tmp_path: Path) -> None:
    path = tmp_path / "meta.json"
    path.write_text('{"shapes": {"root": "./", "annotation": "./internvl.jsonl", "length": 12}}')
    with pytest.raises(DataError, match=r"path: \./internvl\.jsonl, image_root: \./"):
        Pool.open(path)


def test_repeated_ids_are_kept_apart(jsonl: Callable, chat: Callable) -> None:
    path = jsonl(*(chat("q", str(n), id=id) for n, id in enumerate(["x", "x", "y", "x", "x#2"])))
    pool = Pool.open(path)
    assert [pool[n].id for n in range(5)] == ["x", "x#2'", "y", "x#3", "x#2"]
    assert pool.shared_ids == (1, 3)
    assert sorted(pool.random_positions(5, 0)) == [0, 1, 2, 3, 4]
    kept = {how: Pool.open(path, duplicates=how).read(range(5)) for how in ("first", "reject")}
    answers = {how: [s.answer for _, s in read if isinstance(s, Sample)] for how, read in kept.items()}
    assert answers == {"first": ["0", "2", "4"], "reject": ["2", "4"]}


def test_the_lines_of_a_cell_are_no_rows_where_its_row_has_a_wrong_number_of_cells(tmp_path: Path) -> None:
    path = tmp_path / "pool.csv"
    path.write_text('question,answer\nq0,a0\n"Explain:\nname,age\nbob,7\nend",because,extra\nq1,a1\n')
    pool = Pool.open(path)
    found = [record for _, record in pool.read(range(len(pool)))]
    assert [record.reason if isinstance(record, BadRecord) else record.answer for record in found] == [
        "a0",
        "bad_row",
        "a1",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("question,answer\rq0,a0\rq1,a1\r", "lone carriage returns"),
        ("question,answer,,\nq0,a0,,\n", "columns 3 and 4 have no name"),
        ("question,answer,answer\nq0,a0,b0\n", "two columns"),
    ],
)
def test_a_header_that_names_no_columns_is_refused_with_what_to_do(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "pool.csv"
    path.write_bytes(content.encode())
    with pytest.raises(DataError, match=said):
        Pool.open(path)


def test_a_lone_carriage_return_costs_its_row(tmp_path: Path) -> None:
    path = tmp_path / "pool.csv"
    path.write_bytes(b"question,answer\nq0,a\rb\nq1,a1\n")
    bad, good = (record for _, record in Pool.open(path).read(range(2)))
    assert isinstance(bad, BadRecord)
    assert "lone carriage returns" in bad.detail
    assert isinstance(good, Sample)
