"""ICONS' votes against brute force, and its run after `less`."""

from __future__ import annotations

import numpy as np
import pytest

import ostlight
from ostlight.errors import ConfigError
from ostlight.selection.registry import create
from ostlight.selection.scores import Scores
from ostlight_selectors.icons import votes_and_ranks


@pytest.mark.parametrize("share", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("decimals", [1, 9])
def test_votes_are_brute_force(share: float, decimals: int):
    influences = np.round(np.random.default_rng(0).standard_normal((100, 5)), decimals)
    votes, ranks = votes_and_ranks(influences, share)
    voted = max(1, round(share * 100))
    for i in range(100):
        above = [(influences[:, g] > influences[i, g]).sum() < voted for g in range(5)]
        assert votes[i] == sum(above)
        lower = [(influences[:, g] < influences[i, g]).sum() for g in range(5)]
        equal = [(influences[:, g] == influences[i, g]).sum() - 1 for g in range(5)]
        assert ranks[i] == pytest.approx(np.mean([(a + b / 2) / 100 for a, b in zip(lower, equal, strict=True)]))
    assert ranks.max() < 1


def test_an_empty_pool_has_no_votes():
    assert [len(part) for part in votes_and_ranks(np.empty((0, 3)), 0.2)] == [0, 0]


@pytest.mark.parametrize("group", ["task", None])
def test_it_counts_the_votes_of_the_anchor_groups(settings, digits, group: str | None):
    anchors = {"path": str(digits.anchors), "group": group}
    options = {"share": 0.25, "less": {"projection": 4, "parameters": "head"}}
    folder = ostlight.select(settings(anchors=anchors, selector={"name": "icons", "options": options})).folder
    less = Scores.read(folder.path / "dependencies" / "less" / "scores")
    influences = less.column("cosine_by_group") if group else less.score[:, None]
    votes, ranks = votes_and_ranks(influences, 0.25)
    scores = Scores.read(folder.scores)
    assert scores.column("votes").tolist() == votes.tolist()
    assert scores.score == pytest.approx(votes + ranks)
    assert votes.max() <= (7 if group else 1)


def test_influences_are_those_of_the_authors_unless_options_say_otherwise():
    (choice,) = create("icons", {"less": {"projection": 4}}).dependencies()
    assert choice.options == {"step": "sgd", "average": "cosines", "projection": 4}
    (choice,) = create("icons", {"less": {"step": "adam", "average": "gradients"}}).dependencies()
    assert choice.options == {"step": "adam", "average": "gradients"}


def test_unknown_options_of_less_are_refused():
    with pytest.raises(ConfigError, match="projektion"):
        create("icons", {"less": {"projektion": 4}})
