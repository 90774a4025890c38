"""Every file of a run folder is damaged once: no traceback, and no other result without a word about it."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from run_folder_walk import report_contents

import ostlight
from ostlight.config.digitmath import DigitMath
from ostlight.digitmath.build import build
from ostlight.errors import OstlightError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("few_samples_compared")]

TRAINING = {"steps": 1, "batch_size": 4, "lr": 1e-4}
UNREAD = {"tokenizer.json", "tokenizer_config.json", "processor_config.json", "README.md", "report.html"}
"""Names of files that are checked like others beside them, or that nothing reads."""

OPTIONAL = {"notes.json", "saved_files.json", "predictions.parquet"}
"""Removed, these leave a folder that is as good as one in which they were not written yet."""

LATER, SCORED_WITH = ("evaluate", "train"), ("proxy", "selector")
"""Stages after the selection, and what they do not read."""

Stage = Callable[[], object]
Outputs = Callable[[Path], str]


def half(content: bytes, rng: random.Random) -> bytes:
    return content[: len(content) // 2]


def empty(content: bytes, rng: random.Random) -> bytes:
    return b""


def noise(content: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(max(64, len(content)))


def another_byte(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content)) if content else 0
    return content[:place] + bytes([content[place] ^ 1 if content else 1]) + content[place + 1 :]


def removed(content: bytes, rng: random.Random) -> None:
    return None


DAMAGES = [half, empty, noise, another_byte, removed]


def damage(file: Path, rng: random.Random) -> str:
    """Replaces a file by a damaged one, and returns how."""
    kinds = [kind for kind in DAMAGES if not (kind is removed and file.name in OPTIONAL)]
    kind = rng.choice(kinds)
    content = kind(file.read_bytes(), rng)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    return kind.__name__


def digest(folder: Path, *patterns: str) -> str:
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    found = [(str(file.relative_to(folder)), hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    return json.dumps(found)


def files_of(folder: Path) -> Iterator[Path]:
    """Those to be damaged; of many vectors in one folder, the first."""
    seen = set()
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        is_ours = file.is_file() and not file.is_symlink() and not {".locks", "logs", "target"} & {*name.parts[:-1]}
        kind = (name.parent, file.suffix) if "gradient_vectors" in name.parts else name
        if is_ours and file.name not in UNREAD and kind not in seen:
            seen.add(kind)
            yield name


def scan(run: Path, stages: dict[str, tuple[Stage, Outputs]], logged: Callable[[], str]) -> tuple[int, list[str]]:
    """Damages every file once, runs the stages, and returns the number of files and what went wrong."""
    whole = run.with_name("whole")
    run.rename(whole)

    def attempt(stage: Stage, outputs: Outputs) -> tuple[OstlightError | None, str, str]:
        logged()
        try:
            stage()
        except OstlightError as error:
            return error, "", logged()
        return None, outputs(run), logged()

    expected, wrong, files = {}, [], list(files_of(whole))
    shutil.copytree(whole, run, symlinks=True)
    for name, (stage, outputs) in stages.items():
        error, expected[name], _ = attempt(stage, outputs)
        assert error is None
    for file in files:
        shutil.rmtree(run)
        shutil.copytree(whole, run, symlinks=True)
        kind = damage(run / file, random.Random(str(file)))
        for name, (stage, outputs) in stages.items():
            if name in LATER and file.parts[0] in SCORED_WITH:
                continue
            what = f"{file} ({kind}), {name}"
            try:
                error, found, words = attempt(stage, outputs)
            except Exception as crash:
                wrong.append(f"{what}: {type(crash).__name__}: {crash}")
                continue
            said = words if error is None else str(error)
            named = any(text in said for text in (file.name, str(run / file.parent), file.stem))
            if error is not None and not named:
                wrong.append(f"{what}: the file is not named: {error}")
            elif error is None and found != expected[name] and not named:
                wrong.append(f"{what}: another result, and not a word")
    return len(files), wrong


def records_with_images(folder: Path, source: Path) -> Path:
    """The records of a pool of Parquet, with image files."""
    rows = []
    for row in pq.read_table(source).to_pylist():
        image = f"{row['id']}.png"
        (folder / image).write_bytes(row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"])
        rows.append(row | {"image": image})
    (folder / "records.json").write_text(json.dumps(rows))
    return folder / "records.json"


@pytest.fixture
def sections(settings, tmp_path: Path) -> dict[str, Any]:
    data = build(DigitMath(pool=12, anchors=4, dev=4, test=4), tmp_path / "digits")
    pool = records_with_images(tmp_path, data.pool)
    run = settings(
        pool={"path": str(pool)},
        anchors={"path": str(data.anchors)},
        test={"path": str(data.test)},
        budget={"count": 6},
    )
    run["proxy"] |= {"warmup": {"fraction": 0.5, "training": TRAINING}}
    run["target"] |= {"training": TRAINING}
    run["compute"] |= {"shard_size": 6}
    run["evaluation"] |= {"max_new_tokens": 2}
    return run


def test_files_of_a_run(sections, tmp_path: Path, logged):
    config = sections | {"selector": {"name": "ost", "options": {"parameters": "last:1"}}}
    run = ostlight.select(config).folder.path
    ostlight.train(config)
    ostlight.evaluate(config)

    def scoring_goes_on() -> None:
        (run / "scores" / "part-000001.parquet").unlink(missing_ok=True)
        ostlight.select(config)

    count, wrong = scan(
        run,
        {
            "report": (lambda: ostlight.report(run), report_contents),
            "evaluate": (lambda: ostlight.evaluate(config), lambda run: digest(run, "*.parquet", "accuracy.jsonl")),
            "train": (
                lambda: ostlight.train(config, "target.training.lr=2e-4", "target.name=new"),
                lambda run: digest(run, "targets/new/*"),
            ),
            "select": (scoring_goes_on, lambda run: digest(run, "selection.parquet", "subset/*", "scores/*")),
        },
        logged,
    )
    assert count > 30
    assert not wrong, "\n".join(wrong)


def test_files_of_a_benchmark(sections, tmp_path: Path, logged):
    section = {
        "selectors": [{"name": "loss"}, {"name": "random"}],
        "budgets": [{"fraction": 0.5}],
        "protocols": ["equal_steps"],
        "seeds": [0],
        "workers": 1,
    }
    config = {name: value for name, value in sections.items() if name != "budget"} | {"benchmark": section}
    ostlight.benchmark(config)
    run = Path(config["folder"]) / config["name"]
    count, wrong = scan(
        run,
        {
            "report": (lambda: ostlight.report(run), report_contents),
            "benchmark": (lambda: ostlight.benchmark(config), lambda run: digest(run, "table.*", "*/*/scores/*")),
        },
        logged,
    )
    assert count > 20
    assert not wrong, "\n".join(wrong)
