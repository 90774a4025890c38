"""A class that breaks the selector contract is refused when it is defined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from ostlight.errors import ConfigError, SelectorError
from ostlight.selection import registry
from ostlight.selection.selector import RENAMED, Selector


def test_a_class_without_score_is_refused_when_created():
    with pytest.raises(SelectorError, match=r"NoScore: score is missing; define `def score\(self, batch\)`"):

        class NoScore(Selector):
            """Prefers nothing."""


def test_a_class_without_docstring_is_refused():
    with pytest.raises(SelectorError, match="Silent: it has no docstring"):

        class Silent(Selector):
            def score(self, batch: Any) -> dict[str, Any]:
                return {}


def test_a_wrong_signature_is_refused_with_the_right_one():
    with pytest.raises(
        SelectorError, match=r"score takes \(self, batch, model\); define it as `def score\(self, batch\)`"
    ):

        class Greedy(Selector):
            """Wants too much."""

            def score(self, batch: Any, model: Any) -> dict[str, Any]:  # type: ignore[override]
                return {}


def test_options_must_be_a_dataclass_with_types_and_defaults():
    with pytest.raises(SelectorError, match="Options is no dataclass; write @dataclass"):

        class Plain(Selector):
            """Has plain options."""

            class Options:
                top = 3

            def score(self, batch: Any) -> dict[str, Any]:
                return {}

    with pytest.raises(SelectorError, match=r"Options.top has no default; give it one"):

        class Bare(Selector):
            """Has an option without default."""

            @dataclass
            class Options:
                top: int

            def score(self, batch: Any) -> dict[str, Any]:
                return {}

    with pytest.raises(SelectorError, match=r"Options.top has no type; annotate it"):

        class Untyped(Selector):
            """Has an option without type."""

            @dataclass
            class Options:
                top = 3

            def score(self, batch: Any) -> dict[str, Any]:
                return {}


def test_our_own_selectors_are_found_and_say_where_they_come_from():
    assert {"full", "ost", "random"} <= set(registry.names())
    found = registry.find("ost")
    assert found.problem is None
    assert found.source.startswith("ostlight ")
    assert "estimator: one of projected, exact" in "\n".join(registry.option_lines(found.cls))


def test_defaults_are_shown_as_they_are_written_in_yaml():
    assert registry.option_lines(registry.find("best_of").cls)[1:5] == [
        "  - {name: ost, label: filter}",
        "  - {name: ost, options: {step: sgd}, label: 'filter, sgd'}",
        "  - {name: ost, options: {selection: top}, label: top}",
        "  - {name: random}",
    ]
    judge = registry.option_lines(registry.find("llm_judge").cls)
    assert "base_url: text or null (default null)" in judge
    assert any(line.startswith("price: ") and line.endswith("(default {input: 0.0, output: 0.0})") for line in judge)


def test_an_unknown_name_gets_the_nearest_and_the_list():
    with pytest.raises(SelectorError, match=r"unknown selector 'randon'; did you mean 'random'\? known: .*full.*ost"):
        registry.load("randon")


def test_an_unknown_option_gets_the_nearest_and_the_list():
    with pytest.raises(
        ConfigError, match=r"selector.options.estimater.*did you mean 'estimator'.*valid here: estimator"
    ):
        registry.create("ost", {"estimater": "exact"})


def test_a_name_cannot_be_taken_twice():
    class One(Selector):
        """One."""

        def score(self, batch: Any) -> dict[str, Any]:
            return {"score": [0.0] * len(batch)}

    class Two(One):
        """Two."""

    registry.register("tests-taken")(One)
    registry.register("tests-taken")(One)
    with pytest.raises(SelectorError, match="'tests-taken' is taken by .*One; choose another"):
        registry.register("tests-taken")(Two)


@pytest.mark.parametrize("old", RENAMED)
def test_a_name_of_an_earlier_version_is_refused_with_the_new_one(old: str):
    with pytest.raises(SelectorError, match=f"{old} is now {RENAMED[old]};"):
        type("Outdated", (registry.load("full"),), {"__doc__": "Keeps all.", old: True})


def test_a_renamed_option_or_value_is_refused_with_the_new_name():
    class Renamed(Selector):
        """Has renamed its options."""

        renamed_options: ClassVar[dict[str, str]] = {"eta": "step_size", "order=up": "order=ascending"}

        @dataclass
        class Options:
            step_size: float = 1.0
            order: str = "ascending"

        def score(self, batch: Any) -> dict[str, Any]:
            return {"score": [0.0] * len(batch)}

    registry.register("tests-renamed")(Renamed)
    with pytest.raises(ConfigError) as caught:
        registry.create("tests-renamed", {"eta": 0.1, "order": "up"})
    assert caught.value.problems == [
        "selector.options.eta was renamed; write selector.options.step_size",
        "selector.options.order=up was renamed; write selector.options.order=ascending",
    ]
    assert registry.create("tests-renamed", {"order": "ascending"}).options.order == "ascending"
