"""The fixed vectors are made once for a proxy and its anchors, and held wherever they are held say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import ostlight
from ostlight.config.schema import Model
from ostlight.digitmath.model import checkpoint
from ostlight.errors import ConfigError, InfluenceError, RunChangedError
from ostlight.influence import gradient_vectors as module
from ostlight.influence.estimators.second_order import SecondOrder
from ostlight.influence.gradient_vectors import VectorSettings
from ostlight.influence.gradients.vectors import GradientVectors, ShardedVectors, shares
from ostlight.influence.parameters import select_parameters
from ostlight.influence.preconditioner import Block, Preconditioner
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.models.influence_task import make_anchors
from ostlight.models.module import MultimodalModel
from ostlight.pipeline import fingerprint
from ostlight.selection.scores import read_score_table

pytestmark = pytest.mark.usefixtures("few_samples_compared")

PROBES = 11
"""More than are made at once."""


def sketched(
    model: Any, anchors: list[Any], groups: bool = False, scope: str = "blocks", **options: Any
) -> SecondOrder:
    names = [s.tags["task"] if groups else "" for s in anchors]
    made = make_anchors(model, anchors, names, options.pop("tokens_per_batch", 200))
    preconditioner = options.pop("preconditioner", None)
    step = SimulatedStep(model.model, select_parameters(model.model, scope), made, 0.05, preconditioner)
    own = {name: options.pop(name) for name in ("num_probes", "seed") if name in options}
    return SecondOrder(step, **{"num_probes": PROBES} | own, vectors=VectorSettings(**options))


def columns(scorer: SecondOrder, batch: Any) -> dict[str, Tensor]:
    found = scorer.columns(batch)
    return {
        name: torch.as_tensor(found[name]).double() for name in ("score", "alignment", "phi", "cosine", "gradient_norm")
    }


def count_passes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    counts = {"means": 0, "probes": 0}

    def counted(name: str, plain: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return plain(*args, **kwargs)

        return call

    monkeypatch.setattr(module, "mean_gradients", counted("means", module.mean_gradients))
    monkeypatch.setattr(module, "curvature_probes", counted("probes", module.curvature_probes))
    return counts


def test_offloaded_vectors_say_exactly_what_full_ones_say(proxy, samples):
    model = proxy("float32")
    batch = model.batches(samples("pool")[:8], 10_000)[0]
    full, offload = (columns(sketched(model, samples("anchors"), storage=how), batch) for how in ("full", "offload"))
    assert all(torch.equal(full[name], offload[name]) for name in full)


def test_offloaded_vectors_come_to_the_device_one_parameter_at_a_time():
    held = GradientVectors({"a": torch.ones(2, 3), "b": torch.ones(2, 4)}, "meta")
    assert {name: vectors.device.type for name, vectors in held.stored.items()} == {"a": "cpu", "b": "cpu"}
    assert held["a"].device.type == "meta"
    assert held.shapes == {"a": torch.Size([2, 3]), "b": torch.Size([2, 4])}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bf16_vectors_stay_within_their_bound(proxy, samples, dtype: str):
    """Rounding to 8 bits moves each entry by at most 2^-9 of itself, so by Cauchy and Schwarz no product by more than
    2^-9 of the norms' product; the engine's own rounding in fp32 comes on top."""
    model = proxy(dtype)
    batch = model.batches(samples("pool")[:8], 10_000)[0]
    full, half = (sketched(model, samples("anchors"), storage=how) for how in ("full", "bf16"))
    assert {v.dtype for v in half.vectors.stored.values()} == {torch.bfloat16}
    assert 2 * half.plan.bytes_stored * (2 if dtype == "float64" else 1) == full.plan.bytes_stored
    a, b = columns(full, batch), columns(half, batch)
    norms = torch.cat([v.flatten(1).double() for v in full.vectors.stored.values()], dim=1).norm(dim=1)
    bound = 2**-9 * a["gradient_norm"][:, None] * norms + 1e-6
    found = torch.cat(
        [a["alignment"][:, None] - b["alignment"][:, None], (a["phi"] - b["phi"]) * PROBES**0.5], dim=1
    ).abs()
    assert (found <= bound).all()
    assert (found > 0).any()
    # What that does to a ranking: a tenth of the bound at the most, here.
    assert (a["score"] - b["score"]).abs().max() <= 0.01 * a["score"].abs().median()


def test_a_second_scorer_takes_the_vectors_from_the_proxys_folder(proxy, samples, tmp_path: Path, monkeypatch, logged):
    model = proxy("float32")
    batch = model.batches(samples("pool")[:8], 10_000)[0]
    counts = count_passes(monkeypatch)
    made = sketched(model, samples("anchors"), cache=tmp_path)
    first = columns(made, batch)
    assert counts == {"means": 1, "probes": 2}
    # Another batching of the anchors and another way of holding change nothing they depend on.
    for options in ({}, {"tokens_per_batch": 10_000}, {"storage": "offload"}):
        taken = sketched(model, samples("anchors"), cache=tmp_path, **options)
        assert all(torch.equal(made.vectors[name], taken.vectors[name]) for name in made.plan.parameters)
        again = columns(taken, batch)
        # A file's bytes lie differently in memory, and matrix products round by that.
        assert all((first[name] - again[name]).abs().max() <= 1e-5 * first[name].abs().median() for name in first)
    assert counts == {"means": 1, "probes": 2}
    said = logged().splitlines()
    assert said[0].startswith(f"gradient vectors: 12 (1 + {PROBES}) of ")
    assert any("taken from" in line for line in said)


def test_what_was_not_finished_is_made_and_the_rest_taken(proxy, samples, tmp_path: Path, monkeypatch):
    model = proxy("float32")
    batch = model.batches(samples("pool")[:8], 10_000)[0]
    first = sketched(model, samples("anchors"), cache=tmp_path)
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    files = sorted(folder.iterdir())
    assert [f.name.removesuffix(".safetensors") for f in files] == sorted(first.plan.parameters)
    for file in files[::2]:
        file.unlink()
    counts = count_passes(monkeypatch)
    again = sketched(model, samples("anchors"), cache=tmp_path)
    assert counts == {"means": 1, "probes": 2}
    a, b = columns(first, batch), columns(again, batch)
    assert all(torch.allclose(a[name], b[name], rtol=1e-5) for name in a)
    assert sorted(folder.iterdir()) == files


def changes() -> dict[str, Any]:
    def other_weights(model: Any, anchors: list[Any]) -> dict[str, Any]:
        with torch.no_grad():
            next(model.model.parameters()).view(-1)[0] += 1e-3
        return {}

    return {
        "an anchor less": lambda model, anchors: {"anchors": anchors[:-1]},
        "the anchors' order": lambda model, anchors: {"anchors": anchors[::-1]},
        "groups": lambda model, anchors: {"groups": True},
        "the weights": other_weights,
        "the scope": lambda model, anchors: {"scope": "last:1"},
        "probes": lambda model, anchors: {"num_probes": PROBES - 1},
        "the seed": lambda model, anchors: {"seed": 1},
        "the precision": lambda model, anchors: {"storage": "bf16"},
        "the step's shape": lambda model, anchors: {
            "preconditioner": Preconditioner(
                {n: Block(torch.full_like(p, 2.0)) for n, p in select_parameters(model.model, "blocks").items()}
            )
        },
    }


SLOW_CHANGES = ("the anchors' order", "groups", "the step's shape")


@pytest.mark.parametrize(
    "changed", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW_CHANGES else c for c in changes()]
)
def test_other_inputs_make_other_vectors(proxy, samples, tmp_path: Path, monkeypatch, changed: str):
    model, anchors = proxy("float32"), samples("anchors")
    sketched(model, anchors, cache=tmp_path)
    counts = count_passes(monkeypatch)
    options = changes()[changed](model, anchors)
    sketched(model, options.pop("anchors", anchors), cache=tmp_path, **options)
    assert counts["means"] == 1
    made_from = [json.loads(f.read_text()) for f in tmp_path.glob("*.json")]
    assert len(made_from) == 2
    assert sum(made_from[0][key] != made_from[1][key] for key in made_from[0]) in (1, 2)


def test_the_vectors_last_used_are_kept_and_older_ones_removed(proxy, samples, tmp_path: Path, monkeypatch):
    model, anchors = proxy("float32"), samples("anchors")

    def use(seed: int) -> None:
        sketched(model, anchors, scope="last:1", num_probes=1, seed=seed, cache=tmp_path)

    for seed in (*range(module.CACHED_SETS), 0, module.CACHED_SETS):
        use(seed)
    assert sorted(json.loads(f.read_text())["seed"] for f in tmp_path.glob("*.json")) == [
        0,
        *range(2, module.CACHED_SETS + 1),
    ]
    folders = {p.name for p in tmp_path.iterdir() if p.is_dir()}
    assert folders == {f.stem for f in tmp_path.glob("*.json")}
    counts = count_passes(monkeypatch)
    use(0)
    assert counts["means"] == 0
    use(1)
    assert counts["means"] == 1


def test_a_proxy_is_the_same_model_with_and_without_what_was_computed_from_it(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = fingerprint.of_model(str(tmp_path), "proxy")
    (tmp_path / fingerprint.GRADIENT_VECTORS / "key").mkdir(parents=True)
    (tmp_path / fingerprint.GRADIENT_VECTORS / "key" / "w.safetensors").write_bytes(b"vectors")
    assert fingerprint.of_model(str(tmp_path), "proxy") == before


def test_the_size_is_told_before_and_too_large_is_refused(proxy, samples, monkeypatch, logged):
    model = proxy("float32")
    counts = count_passes(monkeypatch)
    monkeypatch.setattr(module, "_free_bytes", lambda place: 2**20)
    with pytest.raises(
        InfluenceError, match=r"only 1\.0 MiB are free: take fewer vectors .*probes, now 11.*vector_storage=bf16"
    ):
        sketched(model, samples("anchors"), groups=True)
    assert counts == {"means": 0, "probes": 0}
    said = logged().splitlines()
    assert said[0].startswith("gradient vectors: 84 (7 groups x (1 + 11)) of ")
    assert "MiB on cpu" in said[0]


def test_vectors_are_not_kept_where_there_is_no_room_for_them(proxy, samples, tmp_path: Path, monkeypatch, logged):
    usage = module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    sketched(proxy("float32"), samples("anchors"), cache=tmp_path / "not" / "there")
    assert "gradient vectors are not cached" in logged()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_shares_are_even_and_the_same_everywhere():
    owners = shares({"a": 5, "b": 4, "c": 3, "d": 3, "e": 1}, 2)
    assert owners == {"a": 0, "b": 1, "c": 1, "d": 0, "e": 1}


@pytest.mark.slow
def test_runs_with_a_resumed_rank_or_another_holding_share_vectors_and_scores(settings, monkeypatch, logged):
    counts = count_passes(monkeypatch)
    options = {"estimator": "second_order", "probes": 4, "step_size": 0.05}
    ost = {"name": "ost", "options": options}
    selection = ostlight.select(settings(selector=ost))
    assert counts == {"means": 1, "probes": 1}
    before = read_score_table(selection.folder.scores)["score"].to_pylist()
    (selection.folder.scores / "part-000001.parquet").unlink()
    logged()
    ostlight.select(settings(selector=ost), "selector.options.vector_storage=offload")
    assert counts == {"means": 1, "probes": 1}
    assert read_score_table(selection.folder.scores)["score"].to_pylist() == before
    lines = logged().splitlines()
    size = next(k for k, line in enumerate(lines) if "MiB in the machine's memory" in line)
    assert "taken from" in lines[size + 1]
    with pytest.raises(RunChangedError, match=r"changed: selector\.options\.vector_storage"):
        ostlight.select(settings(selector=ost), "selector.options.vector_storage=bf16")
    with pytest.raises(ConfigError, match=r"vector_storage must be one of full, bf16, .*, auto; got 'disk'"):
        ostlight.select(settings(selector=ost), "selector.options.vector_storage=disk")


def one_rank(rank: int, ranks: int, folder: str, positions: list[int], pool: list[Any], anchors: list[Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    model = MultimodalModel.load(Model(path=str(checkpoint("proxy")), dtype="float32"), "proxy")
    scorer = sketched(model, anchors, storage="split", cache=Path(folder) / "cache")
    assert isinstance(scorer.vectors, ShardedVectors)
    held = sum(v.nbytes for v in scorer.vectors.stored.values())
    # Unequal work: the first rank has five batches, the second two, and none of the same length.
    mine = positions[:5] if rank == 0 else positions[5:7]
    found = {p: columns(scorer, model.batches([pool[p]], 1)[0]) for p in mine}
    scorer.close()
    torch.save((found, held, sum(scorer.plan.sizes.values())), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


LOOK_UPS = ["abcabcab", "abcacb"]
"""Of two ranks: the second has another order in its second batch, and fewer look-ups."""


def look_up(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    whole = {name: torch.full((2, 3), float(k)) for k, name in enumerate("abc")}
    owners = {"a": 0, "b": 1, "c": 0}
    stored = {name: whole[name] for name in whole if owners[name] == rank}
    vectors = ShardedVectors(stored, owners, {n: v.shape for n, v in whole.items()}, torch.float32, "cpu")
    right = []
    for k, name in enumerate(LOOK_UPS[rank]):
        right.append(torch.equal(vectors[name], whole[name]))
        if k == 2:  # all ranks are here, the round for the next look-up is under way on none or on all
            right.append(vectors.total(rank + 1.0) == 3.0)
    vectors.leave()
    Path(folder, f"{rank}.json").write_text(json.dumps([right, vectors.met]))
    dist.destroy_process_group()


def test_split_vectors_are_sent_ahead_and_right_in_another_order(tmp_path: Path):
    mp.spawn(look_up, (str(tmp_path),), nprocs=2)
    right, met = zip(*(json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)), strict=True)
    assert right == ([True] * 9, [True] * 7)
    # From the second batch on what follows is known: b c a b of the first rank, c (not: b) b (not: a) of the second.
    assert met == (4, 0)


@pytest.mark.slow
def test_vectors_split_over_two_ranks_say_what_full_ones_say(proxy, samples, tmp_path: Path, logged):
    pool, anchors = samples("pool"), samples("anchors")
    mp.spawn(one_rank, (2, str(tmp_path), list(range(7)), pool, anchors), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    whole = parts[0][2]
    assert sum(held for _, held, _ in parts) == whole
    assert all(0.4 * whole < held < 0.6 * whole for _, held, _ in parts)
    model = proxy("float32")
    full = sketched(model, anchors)
    for position, found in (parts[0][0] | parts[1][0]).items():
        expected = columns(full, model.batches([pool[position]], 1)[0])
        for name, values in expected.items():
            assert (found[name] - values).abs().max() <= 1e-5 * values.abs().median(), (position, name)
    # Both shares are kept, so a run on one rank takes them all.
    sketched(model, anchors, cache=tmp_path / "cache")
    assert f"gradient vectors of {len(full.plan.parameters)} parameters: taken from" in logged()
