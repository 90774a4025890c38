"""LESS against gradients taken one at a time."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import ostlight
from ostlight.errors import BadRecord, ConfigError, SelectorError
from ostlight.influence.gradient_vectors import finite_mean_gradients
from ostlight.influence.parameters import select_parameters
from ostlight.influence.sample_gradient import sample_gradient, train_only
from ostlight.models.influence_task import SampleTask, make_anchors
from ostlight.selection.planning import ProxyMemory
from ostlight.selection.registry import create
from ostlight.selection.scores import Scores
from ostlight.training.optimizer_records import warmup_adam_preconditioner
from ostlight_selectors import less
from ostlight_selectors.less import random_directions

pytestmark = pytest.mark.usefixtures("few_samples_compared")

SCOPE = "last:1"


def flat(vectors) -> torch.Tensor:
    return torch.cat([v.double().flatten() for v in vectors])


def gradients_of(model, some) -> torch.Tensor:
    """``[N, P]`` one sample at a time."""
    parameters = select_parameters(model.model, SCOPE)
    train_only(model.model, parameters)
    singles = [model.batches([sample], 1)[0] for sample in some]
    return torch.stack(
        [flat(sample_gradient(model.model, SampleTask(), parameters, single)[1].values()) for single in singles]
    )


@pytest.fixture
def by_hand(proxy, samples, tmp_path):
    """Adam steps ``[5, P]`` of five samples, mean gradients ``[7, P]`` of the anchors' tasks, in the order they occur,
    the model, and the batch."""
    model = proxy("float64")
    parameters = select_parameters(model.model, SCOPE)
    train_only(model.model, parameters)
    anchors = samples("anchors")
    tasks = [a.tags["task"] for a in anchors]
    preconditioner, _ = warmup_adam_preconditioner(
        tmp_path, model.model, parameters, make_anchors(model, anchors, tasks, 1000)
    )

    def gradient(sample):
        return list(sample_gradient(model.model, SampleTask(), parameters, model.batches([sample], 1)[0])[1].values())

    wanted = {task: torch.zeros(sum(p.numel() for p in parameters.values()), dtype=torch.float64) for task in tasks}
    for anchor, task in zip(anchors, tasks, strict=True):
        wanted[task] += flat(gradient(anchor)) / tasks.count(task)
    (batch,) = model.batches(samples("pool")[:5], 10_000)
    steps = [
        flat([preconditioner.apply(n, g) for n, g in zip(parameters, gradient(s), strict=True)]) for s in batch.samples
    ]
    return torch.stack(steps), torch.stack(list(wanted.values())), model, batch


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a @ b.T) / a.norm(dim=1, keepdim=True) / b.norm(dim=1)


def test_both_cosines_are_those_of_the_definition(by_hand, selector_setting):
    steps, wanted, model, batch = by_hand
    selector = create("less", {"parameters": SCOPE, "projection": 16})
    selector.setup(selector_setting(model))
    columns = selector.score(batch)
    parameters = select_parameters(model.model, SCOPE)
    random = torch.cat([random_directions(0, name, p, 16).double().flatten(1) for name, p in parameters.items()], dim=1)
    assert torch.unique(random).tolist() == [-0.25, 0.25]
    sketch = steps @ random.T
    length = sketch.norm(dim=1, keepdim=True)
    expected = (steps @ wanted.T) / (length * wanted.norm(dim=1))
    assert torch.allclose(columns["cosine_by_group"], expected, rtol=1e-5)
    assert torch.allclose(columns["score"], expected.amax(1), rtol=1e-5)
    assert torch.allclose(columns["projected_cosine"], cosines(sketch, wanted @ random.T).amax(1), rtol=1e-5)
    assert torch.allclose(columns["step_length"], length[:, 0], rtol=1e-5)


def test_the_score_comes_nearer_the_true_cosine_than_the_projected_one(by_hand, selector_setting):
    steps, wanted, model, batch = by_hand
    true = cosines(steps, wanted).amax(1)
    selector = create("less", {"parameters": SCOPE, "projection": 128})
    selector.setup(selector_setting(model))
    columns = selector.score(batch)
    # One standard deviation: 1/sqrt(2 * 128) = 6% of the cosine, against 1/sqrt(128) = 0.09 in absolute terms.
    assert torch.allclose(columns["score"], true, rtol=0.25)
    error, projected_error = ((columns[name] - true).square().mean().sqrt() for name in ("score", "projected_cosine"))
    assert error < projected_error


@pytest.mark.parametrize("average", ["gradients", "cosines"])
def test_sgd_steps_and_the_mean_of_cosines_are_those_of_single_gradients(
    average: str, proxy, samples, selector_setting
):
    model, anchors, pool = proxy("float64"), samples("anchors"), samples("pool")[:5]
    tasks = [a.tags["task"] for a in anchors]
    selector = create("less", {"parameters": SCOPE, "projection": 512, "step": "sgd", "average": average})
    selector.setup(selector_setting(model))
    (batch,) = model.batches(pool, 100_000)
    columns = selector.score(batch)
    steps, single = gradients_of(model, batch.samples), gradients_of(model, anchors)
    for g, task in enumerate(dict.fromkeys(tasks)):
        of_task = single[[k for k, t in enumerate(tasks) if t == task]]
        along = (of_task / of_task.norm(dim=1, keepdim=True) if average == "cosines" else of_task).mean(0)
        if average == "gradients":
            along /= along.norm()
        expected = steps @ along / columns["step_length"]
        assert torch.allclose(columns["cosine_by_group"][:, g], expected, rtol=1e-5)
        if average == "cosines":
            true = cosines(steps, of_task).mean(1)
            assert torch.allclose(columns["cosine_by_group"][:, g], true, rtol=0.15)  # the length is estimated
    assert torch.allclose(columns["score"], columns["cosine_by_group"].amax(1))
    assert torch.allclose(columns["projected_cosine"], columns["score"], atol=0.2)


def test_an_anchor_without_a_gradient_counts_nothing_and_one_that_is_not_finite_is_named(proxy, samples, monkeypatch):
    model, anchors = proxy("float64"), samples("anchors")[:2]
    parameters = select_parameters(model.model, SCOPE)
    made, calls = make_anchors(model, anchors, ["a", "a"], 1000), []

    def first_is_zero(model, task, parameters, single):
        loss, gradient = sample_gradient(model, task, parameters, single)
        calls.append({n: g * 0 if not calls else g for n, g in gradient.items()})
        return loss, calls[-1]

    monkeypatch.setattr(less, "sample_gradient", first_is_zero)
    means = less.mean_unit_gradients(model.model, made, parameters)
    assert float(flat(means["a"].values()).norm()) == pytest.approx(0.5)
    monkeypatch.undo()

    def fails(*_):
        raise BadRecord("gradient_not_finite", "the gradient of x holds NaN or infinity")

    monkeypatch.setattr(less, "sample_gradient", fails)
    with pytest.raises(SelectorError, match="anchor .*holds NaN"):
        less.mean_unit_gradients(model.model, made, parameters)


def test_it_shares_the_slope_of_first_order(by_hand, selector_setting):
    """With one group LESS' inner product is that of first order with Adam steps."""
    _, _, model, batch = by_hand
    context = selector_setting(model, groups=[""] * 14)
    less = create("less", {"parameters": SCOPE, "projection": 4})
    less.setup(context)
    ost = create("ost", {"estimator": "first_order", "step": "adam", "step_size": 1.0, "parameters": SCOPE})
    ost.setup(context)
    ours = less.score(batch)
    along = ours["score"] * ours["step_length"] * float(less.lengths[0])
    assert torch.allclose(along, ost.score(batch)["alignment"], rtol=1e-5)


def test_it_runs_with_groups(settings, digits):
    config = settings(
        anchors={"path": str(digits.anchors), "group": "task"},
        selector={"name": "less", "options": {"projection": 8}},
    )
    scores = Scores.read(ostlight.select(config).folder.scores)
    assert scores.column("cosine_by_group").shape == (48, 7)
    assert scores.column("cosine_by_group").max(1) == pytest.approx(scores.score)


def test_it_needs_a_projection_and_anchors(proxy, selector_setting):
    with pytest.raises(ConfigError, match="projection must be a whole number, at least 1; got 0"):
        create("less", {"projection": 0})
    with pytest.raises(SelectorError, match="'less' needs anchors"):
        create("less").setup(selector_setting(proxy(), anchors=[], groups=[]))


def test_a_group_of_anchors_with_a_zero_gradient_is_named(proxy, selector_setting, monkeypatch):
    def one_is_zero(model, anchors, parameters):
        means = finite_mean_gradients(model, anchors, parameters)
        first = next(iter(means))
        return means | {first: {name: torch.zeros_like(vector) for name, vector in means[first].items()}}

    monkeypatch.setattr(less, "finite_mean_gradients", one_is_zero)
    context = selector_setting(proxy("float64"))
    with pytest.raises(SelectorError, match=f"group '{context.groups[0]}' is zero"):
        create("less", {"parameters": SCOPE, "projection": 4}).setup(context)


def test_vectors_that_do_not_fit_are_refused_before_the_proxy_is_loaded(proxy):
    selector = create("less", {"parameters": SCOPE, "projection": 16})
    model = proxy("float32").model
    entries = sum(p.numel() for p in select_parameters(model, SCOPE).values())
    memory = ProxyMemory(model, 1000, anchors=4, groups=2, half=False, ranks=1, free=1000 + 4 * 18 * entries, host=None)
    selector.fit_memory(memory)
    with pytest.raises(SelectorError, match=r"less: 18 gradient vectors of .* entries are .* set fewer parameters"):
        selector.fit_memory(dataclasses.replace(memory, free=memory.free - 1))
