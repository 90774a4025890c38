"""A pool in pieces: each with its own image root, source and weight."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ostlight
from ostlight.config import load_config
from ostlight.config.schema import Piece
from ostlight.data.pool import Pool
from ostlight.errors import ConfigError, DataError
from ostlight.reporting.finished_run import FinishedRun
from ostlight.selection.scores import read_score_table

RECORDS = 20


@pytest.fixture
def pieces(tmp_path: Path) -> list[dict[str, Any]]:
    """Two files of 20 records that name the same ``a.png``, each below its own image root."""
    made = []
    for name, colour in (("web", "red"), ("book", "blue")):
        more = {"image": "a.png", "source": "theirs", "question": "q", "answer": "a"}
        records = [json.dumps(more | {"id": f"{name}{k}"}) for k in range(RECORDS)]
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4), colour).save(tmp_path / name / "a.png")
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(records))
        made.append({"path": str(path), "image_root": str(tmp_path / name), "source": name})
    return made


def kept_by_source(selection: Any) -> dict[str, int]:
    rows = read_score_table(selection.folder.scores).take(selection.kept).to_pylist()
    sources = [dict(row["tags"])["source"] for row in rows]
    return {name: sources.count(name) for name in sorted(set(sources))}


def test_every_piece_has_its_own_image_root_and_source(pieces: list[dict[str, Any]]) -> None:
    pool = Pool.open([Piece(**piece) for piece in pieces])
    assert len(pool) == 2 * RECORDS
    assert [pool[k].tags["source"] for k in (0, RECORDS)] == ["web", "book"]
    assert [pool[k].images[0].open().getpixel((0, 0)) for k in (0, RECORDS)] == [(255, 0, 0), (0, 0, 255)]
    plain = Pool.open([piece["path"] for piece in pieces], image_root=pieces[0]["image_root"])
    assert plain[0].tags["source"] == "theirs"
    assert plain.fingerprint() != pool.fingerprint()


def test_a_piece_without_an_image_root_has_that_of_the_whole(pieces: list[dict[str, Any]]) -> None:
    settings = load_config({"pool": {"path": [pieces[0], pieces[1]["path"]], "image_root": pieces[1]["image_root"]}})
    assert [piece.image_root for piece in settings.pool.pieces] == [piece["image_root"] for piece in pieces]


@pytest.mark.parametrize(("weight", "kept"), [(None, {"book": 5, "web": 5}), (4.0, {"book": 2, "web": 8})])
def test_a_weight_changes_the_share_of_a_source(
    settings: Callable[..., dict[str, Any]], pieces: list[dict[str, Any]], weight: float | None, kept: dict[str, int]
) -> None:
    pieces[0]["weight"] = weight
    config = settings(pool={"path": pieces}, selector={"name": "length"}, budget={"count": 10, "stratify_by": "source"})
    selection = ostlight.select(config)
    assert kept_by_source(selection) == kept
    assert kept_by_source(ostlight.select(selection.folder.path / "config.yaml")) == kept


def test_images_of_one_name_stay_apart_in_the_subset(
    settings: Callable[..., dict[str, Any]], pieces: list[dict[str, Any]]
) -> None:
    config = settings(pool={"path": pieces}, selector={"name": "length"}, budget={"fraction": 1.0})
    subset = ostlight.select(config).folder.subset
    found = {}
    for file in subset.rglob("*.jsonl"):
        pool = Pool.open(file)
        found[pool[0].id] = pool[0].images[0].open().getpixel((0, 0))
    assert found == {"web0": (255, 0, 0), "book0": (0, 0, 255)}


def test_a_finished_run_opens_its_pieces_again(
    settings: Callable[..., dict[str, Any]], pieces: list[dict[str, Any]]
) -> None:
    selection = ostlight.select(settings(pool={"path": pieces}, selector={"name": "length"}))
    run = FinishedRun.open(selection.folder.path)
    assert run.pool is not None
    assert run.pool[RECORDS].tags["source"] == "book"


@pytest.mark.parametrize(
    ("path", "budget", "said"),
    [
        ([], {}, "pool.path"),
        ([{"path": "a", "wieght": 2}], {}, "weight"),
        ([{"image_root": "a"}], {}, "pool.path[0]"),
        ([{"path": "a", "weight": 2}], {"stratify_by": "source"}, "source"),
        ([{"path": "a", "weight": 2, "source": "s"}], {}, "stratify_by"),
        ([{"path": "a", "weight": 2, "source": "s"}], {"stratify_by": "source", "threshold": 0}, "stratify_by"),
        ([{"path": "a", "weight": 2, "source": "s"}, {"path": "b", "source": "s"}], {"stratify_by": "source"}, "'s'"),
    ],
)
def test_pieces_that_say_nothing_or_too_much_are_refused(path: Any, budget: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({"pool": {"path": path}, "budget": budget})
    assert len(caught.value.problems) == 1
    assert said in caught.value.problems[0]


def test_a_weight_of_anchors_is_refused() -> None:
    with pytest.raises(ConfigError, match="anchors"):
        load_config({"pool": {"path": "a"}, "anchors": {"path": [{"path": "b", "source": "s", "weight": 2}]}})


def test_an_image_root_of_a_piece_must_be_there(pieces: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        Pool.open([Piece(pieces[0]["path"], image_root=str(tmp_path / "nowhere"))])
    assert caught.value.path == tmp_path / "nowhere"
