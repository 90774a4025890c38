"""Selectors by name, with messages that say where in the configuration the fault is."""

from __future__ import annotations

import pytest

from ostlight.config.schema import SelectorChoice
from ostlight.errors import ConfigError, SelectorError
from ostlight.selection.registry import create, create_all

TYPO = {"name": "loss", "options": {"preferr": "low"}}


@pytest.mark.parametrize(
    ("name", "options", "place"),
    [
        ("loss", {"preferr": "low"}, "'selector.options.preferr'"),
        ("combine", {"of": [{"name": "length"}, TYPO]}, "'selector.options.of[1].options.preferr'"),
        ("best_of", {"candidates": [{"name": "random"}, TYPO]}, "'selector.options.candidates[1].options.preferr'"),
        (
            "combine",
            {"of": [{"name": "best_of", "options": {"candidates": [TYPO, {"name": "random"}]}}, {"name": "loss"}]},
            "'selector.options.of[0].options.candidates[0].options.preferr'",
        ),
        ("rds", {"embedding": {"tokenz": "all"}}, "'selector.options.embedding.tokenz'"),
        ("icons", {"less": {"projektion": 3}}, "'selector.options.less.projektion'"),
    ],
)
def test_a_typo_in_nested_options_is_shown_with_its_place(name: str, options: dict, place: str):
    with pytest.raises(ConfigError) as error:
        create(name, options)
    (problem,) = error.value.problems
    assert place in problem


def test_an_unknown_selector_in_a_list_is_shown_with_its_place():
    with pytest.raises(SelectorError, match=r"^selector\.options\.of\[1\]: unknown selector 'lenght'"):
        create("combine", {"of": [{"name": "loss"}, {"name": "lenght"}]})
    with pytest.raises(SelectorError, match=r"^unknown selector 'lenght'"):
        create("lenght")
    choices = [SelectorChoice("loss"), SelectorChoice("combine", {"of": [{"name": "active"}, {"name": "loss"}]})]
    with pytest.raises(SelectorError, match=r"^benchmark\.selectors\[1\]\.options\.of: some parts"):
        create_all(choices, "benchmark.selectors")
