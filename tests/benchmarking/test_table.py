"""Tables for people, whatever the names contain and however wide the terminal is."""

from __future__ import annotations

import io

from rich.console import Console

from ostlight.benchmarking.results import ResultRow, RunResult, summarise
from ostlight.benchmarking.table import TextTable, results_table, terminal_tables


def rows(*accuracies: dict[str, float]) -> list[ResultRow]:
    results = [
        RunResult("ost", "20%", "equal_steps", seed, {"all": 0.8} | groups, variant=f"v{k}" * (len(accuracies) > 1))
        for k, groups in enumerate(accuracies)
        for seed in (0, 1)
    ]
    return summarise(results)


def printed(some: list[ResultRow], width: int, title: str = "t") -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in terminal_tables(some, None, title):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_group_without_questions_is_blank():
    table = results_table(rows({"read": 0.9, "sum": 0.7}, {"sum": 0.6, "colour": 0.5}), None)
    first = table.headings.index("read")
    assert table.headings[first : first + 3] == ["read", "sum", "colour"]
    assert [row[first : first + 3] for row in table.rows] == [["90", "70", ""], ["", "60", "50"]]
    assert "colour" in printed(rows({"read": 0.9}, {"colour": 0.5}), 60)


def test_names_from_the_data_are_not_read_as_markup():
    some = rows({"[/x]": 0.9, "a|b\nc": 0.7, "\x1b[31m": 0.5})
    text = printed(some, 200, "[/run]")
    assert "[/x]" in text
    assert "[/run]" in text
    assert "\x1b" not in text
    head, rule, row = results_table(some, None).markdown().splitlines()
    assert r"| a\|b c |" in head
    assert head.replace(r"\|", "").count("|") == rule.count("|") == row.count("|")


def test_a_terminal_gets_groups_and_times_in_tables_of_their_own():
    tables = terminal_tables(rows({"read": 0.9, "sum": 0.7}), None, "t")
    accuracy, groups, cost, time = ([str(c.header) for c in table.columns] for table in tables)
    assert accuracy == ["selected", "seeds", "accuracy, % (95%)", "defective", "total FLOPs"]
    assert groups == ["selected", "read", "sum"]
    assert cost == ["selected", "selection FLOPs", "training FLOPs", "total FLOPs", "Pareto-optimal"]
    assert time[-1] == "total, elapsed seconds"
    assert str(tables[0].title) == "t, equal steps"


def test_no_figure_is_cut_in_a_terminal_of_80_columns():
    planned = RunResult("ost", "20%", "equal_steps", 0, {"all": 0.8}, training_flops=1.85e12, training_s=123.4)
    text = printed(summarise([planned]), 80)
    assert "1.85e+12" in text
    assert "123.4" in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text


def test_names_are_text_in_markdown_and_in_spreadsheets():
    table = TextTable(["selector", "<b>group</b>"], [["=HYPERLINK(1)|x", "-1.5"], ["[a](b) <script> `c` *d*", "+1"]], 1)
    assert table.csv().splitlines()[1:] == ["'=HYPERLINK(1)|x,-1.5", "[a](b) <script> `c` *d*,+1"]
    lines = table.markdown().splitlines()
    assert lines[0] == r"| selector | \<b\>group\</b\> |"
    assert lines[2] == r"| =HYPERLINK(1)\|x | -1.5 |"
    assert lines[3] == r"| \[a\](b) \<script\> \`c\` \*d\* | +1 |"
    for start in "=+-@\t\r":
        assert TextTable(["a"], [[f"{start}1"]], 1).csv().splitlines()[1].lstrip('"').startswith("'")
