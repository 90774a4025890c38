"""Writes a commented configuration for a user's data."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ostlight.config.schema import Columns, SelectorChoice
from ostlight.data.layouts import layout_of
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample, open_images
from ostlight.data.sanitize import printable
from ostlight.errors import BadRecord, OstlightError, UnknownLayoutError
from ostlight.selection.registry import find, names

DEFAULT_SELECTOR = SelectorChoice().name

log = logging.getLogger(__name__)

MAX_RECORDS_READ = 1_000
"""Records that are looked at, spread over the pool."""
MAX_IMAGES_OPENED = 20
"""Records whose images are decoded, spread over those that are looked at."""
MAX_STRATA = 20
"""Values a tag may have to be suggested for ``budget.stratify_by``."""
MAX_BAD_LISTED = 3
"""Images that cannot be opened, listed."""
MAX_TURN_CHARACTERS = 300
"""Shown of a turn."""
STRATA_NAMES = ("task", "skill", "category", "type", "domain", "subject", "source", "dataset")
"""Tags that are suggested first."""


@dataclass(frozen=True)
class PoolSummary:
    """What a part of a pool's records holds.

    Attributes:
        pool: the whole pool.
        samples: the well-formed ones of the records read, also those that lack an answer or whose image is missing.
        rejected: the others, counted by reason.
        layouts: how the records hold their conversations (``sharegpt``, ``messages``, ...), with counts.
        images_opened: records whose images were decoded.
        images_bad: why some of them could not be, one sentence each.
    """

    pool: Pool
    samples: list[Sample]
    rejected: Counter[str]
    layouts: Counter[str]
    images_opened: int = 0
    images_bad: tuple[str, ...] = ()

    @cached_property
    def tags(self) -> dict[str, Counter[str]]:
        """Values of every tag, with counts."""
        tags: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for sample in self.samples:
            for name, value in sample.tags.items():
                tags[name][value] += 1
        return tags

    @property
    def stratify_by(self) -> str | None:
        """A tag that every sample has, with a few values that repeat; ``None`` where there is none."""
        size = len(self.samples)
        suitable = [
            name
            for name, values in self.tags.items()
            if values.total() == size and 2 <= len(values) <= min(MAX_STRATA, size // 3)
        ]
        return next((name for name in (*STRATA_NAMES, *suitable) if name in suitable), None)

    @property
    def with_answers(self) -> int:
        """Number of samples with an assistant turn."""
        return sum(sample.last_reply < len(sample.turns) for sample in self.samples)


def init_config(data: str | Path, out: str | Path | None = None) -> Path:
    """Looks at a data file, folder or glob and writes a commented YAML file ready to edit; returns its path.

    Args:
        data: what ``pool.path`` will be.
        out: file to write; by default the data's name with ``.yaml``, in the current folder.

    Raises:
        DataError: the data is missing, empty or of an unknown format.
        OstlightError: the file to write exists, or cannot be written.
    """
    name = re.sub(r"[^\w.-]+", "-", Path(data).stem).strip("-.") or "mine"
    file = Path(out) if out is not None else Path(f"{name}.yaml")
    if file.exists():
        raise OstlightError(f"{file} exists and is not overwritten; name another file with --out, or remove it")
    columns: dict[str, str] | None = None
    try:
        pool = Pool.open(data, require_answer=False)
    except UnknownLayoutError as error:
        if error.columns is None:
            raise
        columns = error.columns
        pool = Pool.open(data, require_answer=False, columns=Columns(**columns))
        log.info(f"columns: {json.dumps(columns)} (guessed from their names; check them in {file})")
    summary = summarize_pool(pool)
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(_yaml(name, str(data), summary, file, columns))
    except OSError as error:
        raise OstlightError(f"cannot write {file}: {error.strerror}; name another file with --out") from error
    log.info(f"config: {file}")
    if summary.images_bad:
        log.warning(
            f"{len(summary.images_bad)} of the {summary.images_opened} records whose images were tried have one that "
            f"cannot be opened and would be rejected; the first: {printable(summary.images_bad[0])}"
        )
    log.info(f"next: edit the lines marked TODO in {file}, then: ostlight validate {file}")
    return file


def summarize_pool(pool: Pool) -> PoolSummary:
    """Returns what the files of a pool hold, from at most ``MAX_RECORDS_READ`` records spread over them."""
    positions = range(0, len(pool), max(1, len(pool) // MAX_RECORDS_READ))[:MAX_RECORDS_READ]
    records = [read for _, read in pool.read(positions)]
    samples = [read for read in records if isinstance(read, Sample)]
    with_images = [sample for sample in samples if sample.images]
    tried = with_images[:: max(1, len(with_images) // MAX_IMAGES_OPENED)][:MAX_IMAGES_OPENED]
    return PoolSummary(
        pool,
        samples,
        Counter(read.reason for read in records if isinstance(read, BadRecord)),
        _count_layouts(pool, positions),
        len(tried),
        tuple(problem for sample in tried if (problem := _image_problem(pool, sample)) is not None),
    )


def _image_problem(pool: Pool, sample: Sample) -> str | None:
    """Why the images of a record cannot be decoded; ``None`` where they can."""
    try:
        open_images(sample.images)
    except BadRecord as bad:
        return f"{pool.record_name(sample.position)}: {bad}"
    return None


def _describe_sample(sample: Sample) -> list[str]:
    """Returns the turns as lines of text, cut and safe to print."""
    lines = []
    for turn in sample.turns:
        omitted = f" ... ({len(turn.text):,} characters)" if len(turn.text) > MAX_TURN_CHARACTERS else ""
        first, *rest = printable(turn.text[:MAX_TURN_CHARACTERS] + omitted).split("\n")
        lines += [f"{turn.role}: {first}", *(f"  {line}" for line in rest)]
    return lines


def _count_layouts(pool: Pool, positions: range) -> Counter[str]:
    layouts: Counter[str] = Counter()
    for position in positions:
        source, index = pool.source_and_index(position)
        try:
            layout = layout_of(pool.sources[source].record(index))
        except BadRecord:
            continue
        if pool.readers[source].columns is not None:
            layouts["columns"] += 1
        else:
            layouts[layout.name if layout is not None else "unknown"] += 1
    return layouts


def _yaml(name: str, data: str, summary: PoolSummary, file: Path, columns: dict[str, str] | None) -> str:
    strata = summary.stratify_by
    selector, selector_comment = _selector(summary)
    has_paths = any(image.path is not None for sample in summary.samples for image in sample.images)
    images = f"  # paths are relative to {printable(str(summary.pool.sources[0].folder))}" if has_paths else ""
    shares = f"  # keeps its shares: {_values(summary, strata)}" if strata else "  # keeps the pool's shares of a tag"
    mapped = f"\n  columns: {json.dumps(columns)}   # TODO check: guessed from the names" if columns else ""
    return f"""\
# Written by `ostlight init`. Edit the lines marked TODO, then:
#
#   ostlight validate {file}     checks it and estimates what it will cost
#   ostlight select {file}       scores the pool and writes the subset
#   ostlight train {file}        trains the target on it
#
{_findings(summary)}

name: {json.dumps(name)}                   # the run folder is runs/NAME

pool:
  path: {json.dumps(data)}
  image_root: null{images}{mapped}

# About 100 samples you trust that show what the model must do.
anchors:
  path: null                  # TODO a file in any format the pool may have
  group: null                 # a tag that splits the anchors, for utilities by skill

# A few hundred more trusted samples: the warm-up is monitored and subsets are compared on them. Optional.
dev: {{path: null}}

# Questions that `ostlight evaluate` asks the trained target. Optional.
test: {{path: null}}

# The small model that scores: a folder or hub name that `from_pretrained` takes.
proxy:
  path: null                  # TODO
  dtype: float32
  max_length: 4096            # tokens; longer samples are cut
  warmup:
    fraction: 0.05            # of the pool; brief fine-tuning before scoring
    training: {{lr: 1.0e-5, batch_size: 16}}   # the learning rate of the real fine-tuning

# The model that is trained on the subset.
target:
  path: null                  # TODO
  dtype: float32
  training: {{epochs: 1, lr: 1.0e-5, batch_size: 16}}

{selector_comment}
selector: {{name: {selector}}}

budget:
  fraction: 0.2               # or count, tokens (of the target), threshold (of the score)
  stratify_by: {"null" if strata is None else json.dumps(strata)}{shares}
"""


def _findings(summary: PoolSummary) -> str:
    """Returns what was found in the data, as comment lines."""
    pool, read, rejected = summary.pool, len(summary.samples), summary.rejected
    files = f" in {len(pool.files)} files" if len(pool.files) > 1 else ""
    formats = sorted({source.name for source in pool.sources})
    with_images = sum(bool(sample.images) for sample in summary.samples)
    lines = [f"{len(pool):,} records{files}: {', '.join(formats)}"]
    lines += [f"record layout: {', '.join(f'{name} ({count:,})' for name, count in summary.layouts.most_common())}"]
    lines += [f"of {read + rejected.total():,} records read, {read:,} are well-formed:"]
    lines += [f"  {summary.with_answers:,} have an answer, {with_images:,} have images"]
    lines += [f"  rejected: {reason} ({count:,})" for reason, count in rejected.most_common()]
    if summary.images_opened:
        opened = summary.images_opened - len(summary.images_bad)
        lines.append(f"  images of {summary.images_opened} records were tried: {opened} could be opened")
    lines += [f"  cannot be opened: {printable(problem)}" for problem in summary.images_bad[:MAX_BAD_LISTED]]
    if not summary.tags:
        lines.append("tags: none")
    lines += [f"tag {printable(name)}: {_values(summary, name)}" for name in summary.tags]
    for sample in summary.samples[:1]:
        lines += ["", f"first sample (id {printable(sample.id)}):", *(f"  {line}" for line in _describe_sample(sample))]
    return "\n".join(f"# {line}".rstrip() for line in lines)


def _values(summary: PoolSummary, tag: str) -> str:
    values = summary.tags[tag]
    if len(values) > MAX_STRATA:
        return f"{len(values):,} values"
    return " ".join(printable(", ".join(f"{value} ({count:,})" for value, count in values.most_common())).split())


def _selector(summary: PoolSummary) -> tuple[str, str]:
    """Returns the name of a selector that can score this pool, and a comment."""
    if summary.with_answers or not summary.samples:
        return DEFAULT_SELECTOR, "# `ostlight selectors` lists all, with their options."
    classes = {name: find(name).cls for name in names()}
    unlabelled = sorted(name for name, cls in classes.items() if cls is not None and not cls.needs_answers)
    return (
        next(iter(unlabelled), DEFAULT_SELECTOR),
        "# No record that was read has an answer, so only a selector for unlabelled pools can score them:\n"
        f"# {', '.join(unlabelled) or 'none is installed'}. The target cannot be trained before they are annotated.",
    )
