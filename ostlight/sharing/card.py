"""The data set's card: ``README.md`` as the Hugging Face Hub reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from ostlight.data.remote import is_remote
from ostlight.data.sanitize import printable
from ostlight.pipeline.cost_log import total
from ostlight.redact import redact
from ostlight.reporting.finished_run import FinishedRun
from ostlight.reporting.number_format import duration, flops, percent
from ostlight.selection.registry import find, names
from ostlight.sharing.records import KeptRecords, Overview, shares

HUB_LICENCES = frozenset(
    [
        "apache-2.0",
        "mit",
        "openrail",
        "bigscience-openrail-m",
        "creativeml-openrail-m",
        "bigscience-bloom-rail-1.0",
        "bigcode-openrail-m",
        "afl-3.0",
        "artistic-2.0",
        "bsl-1.0",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsd-3-clause-clear",
        "c-uda",
        "cc",
        "cc0-1.0",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nd-4.0",
        "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cdla-sharing-1.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "wtfpl",
        "ecl-2.0",
        "epl-1.0",
        "epl-2.0",
        "etalab-2.0",
        "eupl-1.1",
        "eupl-1.2",
        "agpl-3.0",
        "gfdl",
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "isc",
        "h-research",
        "intel-research",
        "lppl-1.3c",
        "ms-pl",
        "apple-ascl",
        "mpl-2.0",
        "odc-by",
        "odbl",
        "openrail++",
        "osl-3.0",
        "postgresql",
        "ofl-1.1",
        "ncsa",
        "unlicense",
        "zlib",
        "pddl",
        "lgpl-lr",
        "llama2",
        "llama3",
        "llama3.1",
        "llama3.2",
        "llama3.3",
        "llama4",
        "gemma",
        "unknown",
        "other",
    ]
)
"""Names of licences that the Hub knows; any other is ``other`` with a ``license_name``."""

MAX_ROWS = 50
"""Of a table in the card."""

PACKAGES = ("ostlight", "torch", "transformers", "lightning", "peft", "numpy", "pillow")
STAGES = ("warm-up", "score", "select")

_ABSOLUTE = re.compile(r"(?<![\w:/.~-])(?:~?/(?:[^\s/'\",;:]+/)*|[A-Za-z]:\\(?:[^\s\\'\",;:]+\\)*)([^\s/\\'\",;:]*)")


def card_text(
    run: FinishedRun,
    kept: KeptRecords,
    overview: Overview,
    files: str,
    licences: Sequence[str],
    notes: Sequence[str] = (),
) -> str:
    """The card: front matter for the Hub, then what the subset is, how it was chosen and what that cost.

    Keys, absolute paths of this machine and what a terminal obeys are left out.

    Args:
        files: pattern of the data files' names.
        licences: those the user names; without one, those the records state.
        notes: further sentences for the list of limits.
    """
    header = front_matter(run, overview, files, licences)
    body = "\n\n".join(_sections(run, kept, overview, licences, notes))
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n{body}\n"


def front_matter(run: FinishedRun, overview: Overview, files: str, licences: Sequence[str]) -> dict[str, Any]:
    """What the Hub reads of the card."""
    named = list(licences)
    if not named and overview.licences:
        stated = [name for name, _, _ in shares(overview.licences)]
        named = stated + ["unknown"] * (overview.licences.total() < overview.records)
    header: dict[str, Any] = {"pretty_name": f"{clean(run.config.name)}, selected by {clean(_selector(run))}"}
    known = [name.lower() for name in named if name.lower() in HUB_LICENCES]
    if named and len(known) == len(named):
        header["license"] = known[0] if len(known) == 1 else known
    elif named:
        header |= {"license": "other", "license_name": clean(", ".join(named))[:200]}
    tasks = ["image-text-to-text"] if overview.images else ["text-generation"]
    header |= {"task_categories": tasks, "size_categories": [_size_category(overview.records)]}
    header["tags"] = ["ostlight", "data-selection", clean(run.config.selector.name)]
    header["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": files}]}]
    return header


def clean(value: Any) -> str:
    """A value as text on one line: without keys, absolute paths and what a terminal obeys."""
    text = redact(str(value))
    if not is_remote(text):
        text = _ABSOLUTE.sub(lambda match: match[1] or "[folder]", text)
    return printable(" ".join(text.split()))


def cell(value: Any) -> str:
    """A value for a cell of a Markdown table."""
    return re.sub(r"([\\`*_\[\]<>|#!~$])", r"\\\1", clean(value))


def model_name(path: str | None) -> str:
    """A model as others know it: its name on the Hub, or the last part of a folder's path."""
    if path is None:
        return "none"
    is_folder = path.startswith((".", "~", "/")) or "\\" in path or path.count("/") != 1 or Path(path).exists()
    return clean(path) if is_remote(path) or not is_folder else clean(PurePosixPath(PureWindowsPath(path)).name)


def _size_category(records: int) -> str:
    steps = [10**3, 10**4, 10**5, 10**6, 10**7, 10**8, 10**9]
    words = ["1K", "10K", "100K", "1M", "10M", "100M", "1B"]
    if records < steps[0]:
        return "n<1K"
    k = max(k for k, step in enumerate(steps) if records >= step)
    return f"{words[k]}<n<{words[k + 1]}" if k + 1 < len(words) else "n>1B"


def _sections(
    run: FinishedRun, kept: KeptRecords, overview: Overview, licences: Sequence[str], notes: Sequence[str]
) -> list[str]:
    share = percent(overview.records / max(1, len(kept.pool)))
    selected = f"`{clean(_selector(run))}`"
    intro = (
        f"{overview.records:,} of {len(kept.pool):,} records ({share}), selected by {selected} with "
        f"[ostlight](https://github.com/ostlight/ostlight); {overview.images:,} images. Records and images are those "
        "of the pool."
    )
    usage = '```python\nfrom datasets import load_dataset\n\ntrain = load_dataset(FOLDER_OR_NAME, split="train")\n```'
    return [
        f"# {cell(run.config.name)}",
        intro,
        usage,
        "## Columns",
        _columns(overview),
        "## Sources",
        _sources(run, kept, overview),
        "## Licence",
        _licence(overview, licences),
        "## How it was selected",
        _table(("what", "value"), _selection(run, kept)),
        "## Cost",
        _cost(run),
        "## Limits",
        "\n".join(f"- {sentence}" for sentence in (*_limits(run, kept, overview), *notes)),
        "## Versions",
        _table(("package", "version"), _versions()),
    ]


def _selector(run: FinishedRun) -> str:
    return run.config.selector.shown


def _columns(overview: Overview) -> str:
    content = "parts of type `text` and `image`" if overview.images else "text"
    rows = [("`id`", "of the record"), ("`messages`", f"turns; `role`, and `content`: {content}")]
    if overview.has_muted:
        rows.append(("`messages[].weight`", "0 for assistant turns that are not trained on"))
    if overview.images:
        rows.append(("`images`", "in the order of the `image` parts"))
    if overview.has_tools:
        rows.append(("`tools`", "functions that the assistant may call (JSON)"))
    rows.append(("`score`, `rank`", "the selector's score (higher is better), and the order it selects in, from 0"))
    if overview.tags:
        rows.append(("all others", "fields of the records, as text"))
    return "\n".join(["| column | what |", "| --- | --- |", *(f"| {name} | {what} |" for name, what in rows)])


def _sources(run: FinishedRun, kept: KeptRecords, overview: Overview) -> str:
    """What comes from where, in the subset and in the pool."""
    pool = kept.pool_sources(run)
    total_of_pool = max(1, pool.total())
    rows = [
        (name, f"{count:,}", percent(share), percent(pool[name] / total_of_pool))
        for name, count, share in shares(overview.sources)
    ]
    gone = sum((pool - overview.sources)[name] for name in pool if name not in overview.sources)
    rows += [("all others", "0", percent(0), percent(gone / total_of_pool))] if gone else []
    return _table(("source", "records", "share", "share of the pool"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    shown = [f"| {' | '.join(cell(value) for value in row)} |" for row in rows[:MAX_ROWS]]
    more = [f"| and {len(rows) - MAX_ROWS:,} more |{' |' * (len(head) - 1)}"] if len(rows) > MAX_ROWS else []
    return "\n".join([f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |", *shown, *more])


def _licence(overview: Overview, licences: Sequence[str]) -> str:
    stated = overview.licences
    parts = [f"As given by who exported it: {cell(', '.join(licences))}."] if licences else []
    if stated:
        parts.append("As the records state it:\n")
        rows = [(name, f"{count:,}", percent(count / overview.records)) for name, count, _ in shares(stated)]
        if stated.total() < overview.records:
            rows.append(("not stated", f"{overview.records - stated.total():,}", ""))
        parts.append(_table(("licence", "records", "share"), rows))
    return "\n".join(parts) or "Not given. The licences of the sources apply."


def _selection(run: FinishedRun, kept: KeptRecords) -> list[tuple[str, str]]:
    config, choice = run.config, run.config.selector
    found = find(choice.name).cls if choice.name in names() else None
    rows = [("selector", choice.name), ("what it prefers", found.summary() if found is not None else "unknown")]
    options = run.folder.written_options()
    rows += [(f"option {name}", str(value)) for name, value in _flat(options)]
    (budget,) = run.budgets
    size = vars(budget) | {"fraction": budget.share}
    rows.append(("budget", ", ".join(f"{name}: {value}" for name, value in size.items() if value is not None)))
    if found is None or found.uses_proxy:
        warmup = config.proxy.warmup.fraction
        rows.append(
            ("proxy", model_name(config.proxy.path or ("built-in DigitMath proxy" if config.digitmath else None)))
        )
        rows.append(("warm-up", f"on {percent(warmup)} of the pool" if warmup else "none"))
    agreement = run.notes.get("rank_agreement") or run.notes.get("rescored") or {}
    if agreement.get("spearman") is not None:
        measured = (
            f"{agreement['spearman']:.3f} (Spearman, {agreement.get('samples', '?')} samples, against exact utility)"
        )
        rows.append(("rank agreement", measured))
    else:
        rows.append(("rank agreement", "not measured"))
    rows += [
        ("pool fingerprint", kept.pool_fingerprint),
        ("pool records", f"{len(kept.pool):,}"),
        ("seed", str(config.seed)),
    ]
    return rows


def _flat(values: Any, name: str = "") -> list[tuple[str, Any]]:
    """Nested settings as ``a.b`` and their values."""
    if isinstance(values, dict) and values:
        return [pair for key, value in values.items() for pair in _flat(value, f"{name}.{key}" if name else str(key))]
    return [(name, values)] if name else []


def _cost(run: FinishedRun) -> str:
    log = run.cost_log
    rows = []
    for stage in dict.fromkeys(entry.stage for entry in log if entry.stage in STAGES):
        cost = total(log, (stage,))
        rows.append((stage, flops(cost.flops), f"{cost.device_s:,.1f}", duration(cost.wall_s)))
    if len(rows) > 1:
        cost = total(log, STAGES)
        rows.append(("all", flops(cost.flops), f"{cost.device_s:,.1f}", duration(cost.wall_s)))
    table = _table(("stage", "FLOPs", "device-seconds", "time"), rows) if rows else "Not recorded."
    asked = total(log, STAGES)
    if asked.calls:
        table += (
            f"\n\nRequests to served models: {asked.calls:,} ({asked.tokens_in:,} tokens in, {asked.tokens_out:,} out)."
        )
    return table


def _limits(run: FinishedRun, kept: KeptRecords, overview: Overview) -> list[str]:
    spearman = (run.notes.get("rank_agreement") or {}).get("spearman")
    limits = [
        "Chosen for one purpose: a score says what a selector measured on its own model and reference samples, not "
        "whether a record is true, safe, unbiased or free of personal data. Nothing was filtered for these.",
        "A subset may lack what its pool was rich in; compare the shares above.",
    ]
    if spearman is not None and spearman < 0.8:
        limits.append(f"The rank agreement is {spearman:.2f}: the estimate follows exact utility loosely here.")
    if kept.rejected:
        limits.append(f"{kept.rejected:,} records of the pool could not be used and were not considered.")
    if overview.left_out:
        reasons = ", ".join(f"{count:,} {cell(reason)}" for reason, count in overview.left_out.most_common())
        limits.append(
            f"Selected records that are missing here, because they cannot be read as a conversation: {reasons}."
        )
    return limits


def _versions() -> list[tuple[str, str]]:
    found = []
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return found
