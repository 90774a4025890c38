"""What the page shows, gathered from a run."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ostlight.benchmarking.names import in_common
from ostlight.models.cost import StageCost
from ostlight.pipeline.cost_log import total
from ostlight.reporting.evidence import Evidence
from ostlight.reporting.explorer import packed
from ostlight.reporting.families import Families, find_families
from ostlight.reporting.figures import Scale
from ostlight.reporting.histogram import NARROW, WIDE, Histogram, histogram
from ostlight.reporting.lists import budget_line, lists, margins, undecided
from ostlight.reporting.matrix import matrices
from ostlight.reporting.noise import CERTAIN
from ostlight.reporting.pareto import Pareto, pareto
from ostlight.reporting.picks import Pick
from ostlight.reporting.pictures import Album
from ostlight.reporting.run import Run
from ostlight.reporting.samples import Card, cards, story
from ostlight.reporting.standing import COSTS, Standing, read_standings

NOT_FACTS = ("rank_agreement", "groups", "best_of")
"""Notes that the page shows elsewhere."""
SHOWN_FAMILIES = 24
MEMBERS = 6
"""Members of a family that are shown."""
REASON_EXAMPLES = 5


def contents(run: Run) -> dict[str, Any]:
    """Everything the template asks for; parts the run holds nothing for are empty, and named in ``missing``."""
    standings = read_standings(run.path) if run.is_benchmark else []
    scored = run.scored[0] if run.scored else None
    shown = Scored.read(scored).contents() if scored is not None else None
    if scored is None:
        run.missing.append("Utilities: the folder holds no scores.")
    answers = _answers(run)
    entries = _entries(run)
    missing = list(dict.fromkeys([*run.missing, *(scored.missing if scored else [])]))
    return {
        "run": run,
        "standings": standings,
        "common": in_common(standings),
        "groups": list(dict.fromkeys(g for s in standings for g in s.accuracy if g != "all")),
        "baseline": _baseline(run, standings),
        "variants": list(dict.fromkeys(s.variant for s in standings if s.variant)),
        "plots": _plots(standings),
        "scored": shown,
        "places": _places(run),
        "reasons": _reasons(scored or run),
        "answers": answers,
        "cost_log": entries,
        "total": total(entries, tuple({e.stage for e in entries})),
        "settings": (run.path / "config.yaml").read_text(),
        "missing": missing,
    }


def _places(run: Run) -> list[tuple[str, str]]:
    """The folders of a benchmark's scores, the shown one first, each with its variants in words; of the others, those
    that tell more than a number a sample."""
    if not run.is_benchmark:
        return []
    told = [scored for k, scored in enumerate(run.scored) if k == 0 or scored.evidence_columns]
    places = [str(scored.path.relative_to(run.path)) for scored in told]
    return [(place, ", ".join(run.variants_scored.get(place, []))) for place in places]


def _baseline(run: Run, standings: list[Standing]) -> str | None:
    """Who the lines are compared to; ``None`` where no line is."""
    settings = run.config.benchmark
    return settings.compared_to if settings and any(s.difference is not None for s in standings) else None


def _plots(standings: list[Standing]) -> dict[str, dict[str, list[Pareto]]]:
    """By variant (one without a name where there are none) and kind of cost, for a screen and for a telephone; those
    alone that have something to plot."""
    found: dict[str, dict[str, list[Pareto]]] = defaultdict(dict)
    for variant, cost in itertools.product(dict.fromkeys(s.variant for s in standings), COSTS):
        rivals = [s for s in standings if s.variant == variant]
        if pair := [plot for size in (WIDE, NARROW) if (plot := pareto(rivals, cost, size)) is not None]:
            found[variant][cost] = pair
    return found


@dataclass
class Scored:
    """The part of the page about utilities."""

    run: Run
    evidence: Evidence
    families: Families | None
    scale: Scale
    album: Album = field(default_factory=Album)

    @classmethod
    def read(cls, run: Run) -> Scored:
        evidence = Evidence.read(run)
        return cls(run, evidence, find_families(evidence), Scale.of(evidence.score, evidence.is_utility))

    @cached_property
    def margins(self) -> list[np.ndarray | None]:
        """Of each pick."""
        return [margins(self.evidence, pick) for pick in self.evidence.picks]

    def contents(self) -> dict[str, Any]:
        evidence = self.evidence
        if not len(evidence):
            self.run.missing.append("Utilities: every record was set aside.")
        chosen, picks = lists(evidence, self.margins), self._picks()
        shown, families = self._cards(chosen), self._family_cards()
        return {
            "run": self.run,
            "evidence": evidence,
            "scale": self.scale,
            "toxic": int(evidence.toxic.sum()),
            "picks": picks,
            "typical_noise": None if evidence.noise is None else float(np.median(evidence.noise)),
            "histograms": self._histograms(),
            "matrices": matrices(evidence),
            "lists": {name: len(rows) for name, rows in chosen.items()},
            "cards": shown,
            "families": families,
            "family_count": None if self.families is None else len(self.families.sizes),
            "in_families": 0 if self.families is None else int(self.families.sizes.sum()),
            "stratify_by": sorted(self._stratified_by()),
            "agreement": self.run.notes.get("rank_agreement"),
            "trials": {
                b: notes["best_of"] for b, notes in self._noted().items() if isinstance(notes.get("best_of"), dict)
            },
            "facts": list(self._facts()),
            "data": packed(evidence, self.families, self.scale) | {"pictures": self.album.addresses()},
        }

    def _picks(self) -> list[dict[str, Any]]:
        """Each pick, and what it comes to."""
        toxic = self.evidence.toxic
        return [
            {
                **vars(pick),
                "size": pick.size,
                "toxic": int((toxic & pick.kept).sum()),
                "lined": margin is not None,
                "undecided": undecided(self.evidence, margin, CERTAIN),
            }
            for pick, margin in zip(self.evidence.picks, self.margins, strict=True)
        ]

    def _stratified_by(self) -> set[str]:
        """Tags in each of whose values a budget has a line of its own."""
        picks = zip(self.evidence.picks, self.margins, strict=True)
        lined = [pick for pick, margin in picks if margin is not None]
        return {
            spent.stratify_by for spent in (lined if self.evidence.picks else self.run.budgets) if spent.stratify_by
        }

    def _noted(self) -> dict[str, dict[str, Any]]:
        """What was noted while the budgets of this page were picked."""
        return {b.label: self.run.pick_notes[b.label] for b in self.run.budgets if b.label in self.run.pick_notes}

    def _facts(self) -> Iterator[tuple[str, str, Any]]:
        """Budget (none for what holds for all), name and value of each fact without a place of its own on the page."""
        for budget, noted in {"": self.run.notes, **self._noted()}.items():
            for name, value in noted.items():
                if name in NOT_FACTS:
                    continue
                if isinstance(value, dict):
                    value = {k: v for k, v in value.items() if not isinstance(v, dict | list)}
                yield budget, name, value

    def _histograms(self) -> list[list[Histogram]]:
        """For a screen and for a telephone, of each pick; one pair where nothing was picked."""
        picks: Sequence[Pick | None] = self.evidence.picks or [None]
        sizes, lines = (WIDE, NARROW), self._lines()
        return [[histogram(self.evidence, pick, lines, self.scale, size) for size in sizes] for pick in picks]

    def _lines(self) -> dict[str, float]:
        """Where a ranking of the whole pool would part what each pick keeps; without any, what each budget would."""
        score = self.evidence.score
        if self.evidence.picks:
            return {f"budget {pick.budget}": budget_line(score, pick.size) for pick in self.evidence.picks}
        found = {}
        for budget in self.run.budgets:
            if budget.threshold is not None:
                found[budget.label] = budget.threshold
            elif budget.tokens is None:
                found[budget.label] = budget_line(score, budget.size(len(score)))
        return found

    def _cards(self, chosen: dict[str, np.ndarray]) -> list[Card]:
        """Each sample once, with the lists it is in."""
        in_lists: dict[int, list[str]] = defaultdict(list)
        for name, rows in chosen.items():
            for row in rows.tolist():
                in_lists[row].append(name)
        stories = [story(self.evidence, row, self.families, self.margins) for row in sorted(in_lists)]
        made = list(cards(stories, self.run.pool, self.scale, self.album))
        for card in made:
            card.lists = in_lists[card.story.row]
        return sorted(made, key=lambda card: card.story.place)

    def _family_cards(self) -> list[list[Card]]:
        if self.families is None:
            return []
        found = []
        for family in range(min(SHOWN_FAMILIES, len(self.families.sizes))):
            rows = self.families.members(family)
            rows = rows[np.argsort(self.evidence.place[rows])][:MEMBERS]
            stories = [story(self.evidence, int(row), self.families, self.margins) for row in rows]
            found.append(list(cards(stories, self.run.pool, self.scale, self.album)))
        return found


def _reasons(run: Run) -> list[dict[str, Any]]:
    """Records set aside by reason, the most frequent first, with the first few of each."""
    rows: dict[str, list[Any]] = defaultdict(list)
    for row in run.quarantine:
        rows[row.reason].append(row)
    counts = run.quarantine.counts()
    return [{"reason": r, "count": n, "examples": rows[r][:REASON_EXAMPLES]} for r, n in counts.items()]


def _entries(run: Run) -> list[StageCost]:
    """The run's cost log and, of a benchmark, its selectors'."""
    own = list(run.cost_log)
    if run.is_benchmark:
        own += [entry for other in run.scored for entry in other.cost_log]
    return own


def _answers(run: Run) -> list[dict[str, Any]]:
    """Accuracy of the trained target by group, ``all`` first; empty where it was not evaluated."""
    if not run.folder.predictions.is_file():
        if not run.is_benchmark:
            run.missing.append("Accuracy: the target was not trained and evaluated in this folder.")
        return []
    table = pq.read_table(run.folder.predictions, columns=["group", "correct"])
    correct, groups = np.array(table["correct"].to_pylist(), float), np.array(table["group"].to_pylist(), object)
    masks = {"all": np.ones(len(groups), bool)} | {g: groups == g for g in sorted(set(groups) - {""})}
    return [{"group": g, "count": int(m.sum()), **_wilson(correct[m])} for g, m in masks.items()]


def _wilson(correct: np.ndarray) -> dict[str, float]:
    """Share and its 95% interval (Wilson, 1927): sound for few questions and for shares near 0 and 1."""
    n, share = len(correct), float(correct.mean())
    z2 = CERTAIN**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = CERTAIN / (1 + z2 / n) * (share * (1 - share) / n + z2 / (4 * n * n)) ** 0.5
    return {"share": share, "low": centre - half, "high": centre + half}
