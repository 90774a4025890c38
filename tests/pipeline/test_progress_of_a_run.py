"""What a run shows of its progress: every part that takes long on a large model or pool is a phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

import ostlight
from ostlight import progress
from ostlight.progress import Phase, shown_by


class Silent:
    interval = 60.0

    def show(self, phases: Sequence[Phase], now: float) -> None:
        pass

    def close(self) -> None:
        pass


class Opened(list[Phase]):
    """The open phases, which also remembers all there were, each with the one it was in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str | None, Phase]] = []

    def append(self, phase: Phase) -> None:
        self.seen.append((self[-1].what if self else None, phase))
        super().append(phase)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    phases = Opened()
    monkeypatch.setattr(progress, "_open", phases)
    return phases


def test_set_up_scoring_training_and_evaluation_are_phases_that_reach_their_end(
    opened: Opened, settings: Callable[..., dict[str, Any]], few_samples_compared: None
) -> None:
    options = {"estimator": "projected", "rank": 2, "step": "ekfac"}
    warmup = {"fraction": 0.2, "training": {"batch_size": 4}}
    config = settings(selector={"name": "ost", "options": options})
    config["proxy"]["warmup"] = warmup
    with shown_by(Silent()):
        ostlight.select(config)
        ostlight.train(config)
        ostlight.evaluate(config)
    names = {phase.what for _, phase in opened.seen}
    assert names >= {
        "opening pool.path",
        "reading the anchors",
        "looking for anchors",
        "loading the proxy",
        "warm-up: reading and encoding",
        "warm-up",
        "setting up the selector",
        "ekfac factors",
        "ekfac eigenvectors",
        "ekfac second moments",
        "step size",
        "samples of the pool",
        "calibration by measured steps",
        "gradient vectors",
        "anchors' mean gradients",
        "pass over the anchors",
        "curvature correction",
        "rank agreement",
        "scoring",
        "selecting by ost",
        "loading the target",
        "train",
        "saving the target",
        "reading the questions",
        "generating answers",
    }
    within = {phase.what: outer for outer, phase in opened.seen}
    assert within["rank agreement"] == "setting up the selector"
    assert within["scoring"] is None, "its rate is not that of the set-up"
    assert list(opened) == []
    unfinished = [p for _, p in opened.seen if p.total is not None and p.done < p.total]
    assert {p.what for p in unfinished} <= {"samples of the pool"}, "which is read as far as needed"
    (scoring,) = [p for _, p in opened.seen if p.what == "scoring"]
    assert scoring.done <= scoring.total == 48


def test_nothing_is_shown_where_the_configuration_says_so(
    opened: Opened, settings: Callable[..., dict[str, Any]]
) -> None:
    ostlight.select(settings(selector={"name": "length"}))
    assert opened.seen == []
