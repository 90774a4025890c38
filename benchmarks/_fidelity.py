"""What the fidelity benchmark reads off one pool and one proxy: sketches, definitions, and what lies between them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ostlight.config.schema import Compute, Proxy, Training
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.digitmath import DigitMath, build
from ostlight.digitmath.model import checkpoint
from ostlight.influence.anchors import Anchors
from ostlight.influence.estimators.exact import Exact
from ostlight.influence.estimators.projected import Projected
from ostlight.influence.estimators.second_order import SecondOrder
from ostlight.influence.parameters import select_parameters
from ostlight.influence.preconditioner import Preconditioner
from ostlight.influence.sample_gradient import norm, sample_gradient, train_only
from ostlight.influence.simulated_step import SimulatedStep
from ostlight.influence.step_size import first_adam_step
from ostlight.models.batch import Batch
from ostlight.models.cost import StageCost
from ostlight.models.influence_task import SampleTask, make_anchors
from ostlight.models.losses import IGNORED
from ostlight.models.module import MultimodalModel
from ostlight.training.fit import TrainingJob, fit
from ostlight.training.loss_monitor import LossMonitor, mean_loss
from ostlight.training.optimizer_records import OptimizerRecords, median_update_norm
from ostlight.training.steps import EncodedPool

TOKENS_PER_BATCH = 4096
BATCH_SIZE, LEARNING_RATE = 16, 5e-4
COMPUTE = Compute(accelerator="cpu", progress=False, logger="none")
SHIFT = 1e-3
"""Length of the shift in central differences. The models' norms round to float32 whatever the weights are: at 1e-4 that
rounding swamps the second difference, at 1e-2 truncation takes a quarter off it; at 1e-3 it is right to about 1%."""


@dataclass(frozen=True)
class WarmUp:
    """Share of the pool, passes over it, and whether the development loss may stop it."""

    fraction: float
    epochs: float
    watched: bool = True


WARM_UPS: dict[str, WarmUp | None] = {
    "pretrained": None,
    "0.05": WarmUp(0.05, 1),
    "0.25": WarmUp(0.25, 1),
    "two_passes": WarmUp(1.0, 2),
    "converged": WarmUp(1.0, 5, watched=False),
}


@dataclass(frozen=True)
class LabelledPool:
    """One pool with its trusted samples. ``defects`` names each pool record's defect, or ``clean``."""

    seed: int
    pool: Pool
    samples: list[Sample]
    defects: list[str]
    anchors: list[Sample]
    dev: list[Sample]

    @classmethod
    def of(cls, seed: int, size: int, folder: Path) -> LabelledPool:
        files = build(DigitMath(pool=size, seed=seed), folder / f"data-{seed}")
        pool, anchors, dev = (Pool.open(str(path)) for path in (files.pool, files.anchors, files.dev))
        labels = pq.read_table(files.defect_labels)
        of_id = dict(zip(labels["id"].to_pylist(), labels["defect"].to_pylist(), strict=True))
        samples = _samples(pool)
        return cls(seed, pool, samples, [of_id[s.id] for s in samples], _samples(anchors), _samples(dev))


def _samples(pool: Pool) -> list[Sample]:
    return [read for _, read in pool.read(range(len(pool))) if isinstance(read, Sample)]


@dataclass(frozen=True)
class WarmedProxy:
    """A proxy at one checkpoint.

    Attributes:
        parameters: ``blocks``.
        update_norm: what the rule for eta is given.
        folder: holds the warm-up's second moments, if there was one.
    """

    model: MultimodalModel
    parameters: dict[str, nn.Parameter]
    anchors: Anchors
    update_norm: float
    dev_loss: float
    folder: Path

    @classmethod
    def of(cls, pool: LabelledPool, name: str, folder: Path) -> WarmedProxy:
        warm_up, folder = WARM_UPS[name], folder / f"proxy-{pool.seed}-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        settings = Training(epochs=warm_up.epochs if warm_up else 1, batch_size=BATCH_SIZE, lr=LEARNING_RATE)
        model = MultimodalModel.load(Proxy(path=str(checkpoint("proxy"))), "proxy", settings)
        if warm_up is not None:
            count = max(1, round(warm_up.fraction * len(pool.pool)))
            rows = np.sort(np.random.default_rng(pool.seed).choice(len(pool.pool), size=count, replace=False))
            records = OptimizerRecords()
            watch = [LossMonitor(lambda: model.batches(pool.dev, TOKENS_PER_BATCH))] if warm_up.watched else []
            data = EncodedPool(pool.pool, rows, model.encoder)
            callbacks = [records, *watch]
            job = TrainingJob(COMPUTE, folder, "warm-up", pool.seed, callbacks, quiet=True)
            fit(model, data, job, StageCost("warm-up"))
            records.save(folder)
        parameters = select_parameters(model.model, "blocks")
        length = median_update_norm(folder, parameters) or first_adam_step(parameters, LEARNING_RATE)
        anchors = make_anchors(model, pool.anchors, [""] * len(pool.anchors), TOKENS_PER_BATCH)
        loss = mean_loss(model, model.batches(pool.dev, TOKENS_PER_BATCH))
        return cls(model, parameters, anchors, length, loss, folder)

    def step(self, eta: float, preconditioner: Preconditioner | None = None) -> SimulatedStep:
        return SimulatedStep(self.model.model, self.parameters, self.anchors, eta, preconditioner)

    def singles(self, samples: Sequence[Sample]) -> list[Batch]:
        return [batch for sample in samples for batch in self.model.batches([sample], TOKENS_PER_BATCH)]


def sketched(
    proxy: WarmedProxy, samples: Sequence[Sample], probes: int, seed: int, preconditioner: Preconditioner | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slopes ``[N]``, sketches ``[N, K]`` and gradient norms ``[N]``; none of them depends on eta."""
    scorer = SecondOrder(proxy.step(1.0, preconditioner), probes, seed)
    batches = proxy.model.batches(samples, TOKENS_PER_BATCH)
    scorer.verify(batches[0].rows([0]))
    place = {id(sample): row for row, sample in enumerate(samples)}
    slopes, phi, norms = np.zeros(len(samples)), np.zeros((len(samples), probes)), np.zeros(len(samples))
    for batch in batches:
        rows, columns = [place[id(sample)] for sample in batch.samples], scorer.columns(batch)
        slopes[rows], phi[rows], norms[rows] = (columns[c].numpy() for c in ("alignment", "phi", "gradient_norm"))
    return slopes, phi, norms


def projected(
    proxy: WarmedProxy,
    samples: Sequence[Sample],
    snapshots: Sequence[Sample],
    count: int,
    etas: Sequence[float],
    preconditioner: Preconditioner | None = None,
) -> np.ndarray:
    """``[len(etas), N]`` utilities from ``count`` directions, measured again at each eta."""
    singles, batches = proxy.singles(snapshots), proxy.model.batches(samples, TOKENS_PER_BATCH)
    place = {id(sample): row for row, sample in enumerate(samples)}
    found = np.zeros((len(etas), len(samples)))
    for k, eta in enumerate(etas):
        scorer = Projected(proxy.step(eta, preconditioner), singles, count)
        for batch in batches:
            rows = [place[id(sample)] for sample in batch.samples]
            found[k, rows] = scorer.columns(batch)["score"].numpy()
    return found


def definitions(
    proxy: WarmedProxy, singles: Sequence[Batch], etas: Sequence[float], preconditioner: Preconditioner | None = None
) -> np.ndarray:
    """``[len(etas), N]`` utilities by `exact`."""
    found = []
    for eta in etas:
        exact = Exact(proxy.step(eta, preconditioner))
        found.append([float(exact.one(single)["score"]) for single in singles])
    return np.array(found)


def trained_gain(proxy: WarmedProxy, pool: LabelledPool, rows: np.ndarray, seed: int, epochs: float) -> float:
    """What the anchors' mean loss falls by, in nats, when the proxy is trained on these pool records."""
    model = copy.deepcopy(proxy.model).requires_grad_(True)
    model.training_settings = Training(epochs=epochs, batch_size=BATCH_SIZE, lr=LEARNING_RATE)
    before = float(proxy.anchors.losses(model.model)[0])
    data = EncodedPool(pool.pool, rows, model.encoder)
    fit(model, data, TrainingJob(COMPUTE, proxy.folder, "subset", seed, quiet=True), StageCost("train"))
    return before - float(proxy.anchors.losses(model.model)[0])


@dataclass(frozen=True)
class StepResponses:
    """How the anchors' answers react to a step along each sample's gradient, in float64 weights.

    Attributes:
        logits: ``[R, V]`` of the R answer tokens; ``labels`` ``[R]``; ``weights`` ``[R]``, ``w_t``.
        changes: ``[N, R, V]`` ``J_t g_i`` (stored in float32).
        gauss_newton: ``[N]`` ``g_i' H g_i`` with the Gauss-Newton matrix, without sampling.
        hessian: ``[N]`` the second derivative of ``L_V`` along ``g_i``.
    """

    logits: Tensor
    labels: Tensor
    weights: Tensor
    changes: Tensor
    gauss_newton: np.ndarray
    hessian: np.ndarray

    @classmethod
    def of(cls, proxy: WarmedProxy, singles: Sequence[Batch]) -> StepResponses:
        """Two passes over the anchors for each sample: central differences along its gradient."""
        model = copy.deepcopy(proxy.model).double()
        named = dict(model.model.named_parameters())
        parameters = {name: named[name] for name in proxy.parameters}
        train_only(model.model, parameters)
        kept = [p.detach().clone() for p in parameters.values()]

        def at(gradient: Sequence[Tensor], size: float) -> Tensor:
            with torch.no_grad():
                for parameter, start, g in zip(parameters.values(), kept, gradient, strict=True):
                    parameter.copy_(start + size * g)
                return torch.cat([model.logits(b)[:, :-1][b.labels[:, 1:] != IGNORED] for b in proxy.anchors.batches])

        wanted = [b.labels[:, 1:] != IGNORED for b in proxy.anchors.batches]
        labels = torch.cat([b.labels[:, 1:][w] for b, w in zip(proxy.anchors.batches, wanted, strict=True)])
        lengths = torch.cat([w.sum(1, keepdim=True).expand_as(w)[w] for w in wanted])
        weights = 1 / (len(proxy.anchors.groups) * lengths.double())
        middle = at(kept, 0.0)
        p, loss = middle.softmax(-1), anchor_loss(middle, labels, weights)
        changes, curvatures = [], []
        for single in singles:
            at(kept, 0.0)
            _, gradient = sample_gradient(model.model, SampleTask(), parameters, single)
            size = SHIFT / max(norm(gradient), 1e-12)
            up, down = at(list(gradient.values()), size), at(list(gradient.values()), -size)
            change = (up - down) / (2 * size)
            spread = (p * change.square()).sum(-1) - (p * change).sum(-1).square()
            second = anchor_loss(up, labels, weights) - 2 * loss + anchor_loss(down, labels, weights)
            curvatures.append((float(weights @ spread), float(second) / size**2))
            changes.append(change.float())
        gauss_newton, hessian = np.array(curvatures).T
        return cls(middle, labels, weights, torch.stack(changes), gauss_newton, hessian)

    def linear_logits(self, eta: float, changes: Tensor | None = None) -> np.ndarray:
        """``[N]`` utilities were the network linear in its weights, with the cross-entropy as it is."""
        start = anchor_loss(self.logits, self.labels, self.weights)
        return np.array(
            [
                float(start - anchor_loss(self.logits - eta * change.double(), self.labels, self.weights))
                for change in (self.changes if changes is None else changes)
            ]
        )

    def whitened(self) -> Tensor:
        """``[N, R * V]`` with ``||row i||^2 = g_i' H g_i``: centred under the softmax, weighted by its roots."""
        p = self.logits.softmax(-1).float()
        roots = (p * self.weights.float()[:, None]).sqrt()
        return torch.stack([((c - (p * c).sum(-1, keepdim=True)) * roots).flatten() for c in self.changes])

    def projected(self) -> Tensor:
        """``changes`` as far as those of the other half of the samples span them: N/2 fixed probes would give these."""
        rows, half = self.whitened(), len(self.changes) // 2
        found = torch.zeros_like(self.changes)
        for inside, outside in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
            gram = (rows[inside] @ rows[inside].T).double()
            # A gradient near zero spans nothing: directions below rounding are left out.
            mixture = torch.linalg.pinv(gram, rtol=1e-6, hermitian=True) @ (rows[inside] @ rows[outside].T).double()
            found[outside] = torch.einsum("ab,arv->brv", mixture.float(), self.changes[inside])
        return found

    def resampled(self, probes: int, every_label: bool, seed: int) -> np.ndarray:
        """``[N]`` curvature from K fresh probes: one drawn label a token, or random signs on all labels at once.

        Both are unbiased: with independent signs ``e_y``, ``E[(sum_y e_y sqrt(p_y) (1_y - p))^2] = diag(p) - p p'``.
        """
        generator = torch.Generator().manual_seed(seed)
        p = self.logits.softmax(-1)
        if every_label:
            rows = self.whitened()
            signs = torch.randint(0, 2, (rows.shape[1], probes), generator=generator).float() * 2 - 1
            found = rows @ signs
        else:
            drawn = torch.multinomial(p, probes, replacement=True, generator=generator)
            signs = torch.randint(0, 2, drawn.shape, generator=generator) * 2.0 - 1
            factor = (self.weights[:, None].sqrt() * signs).float()
            found = torch.stack(
                [((c.gather(1, drawn) - (p.float() * c).sum(-1, keepdim=True)) * factor).sum(0) for c in self.changes]
            )
        return found.double().square().mean(1).numpy()


def anchor_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """``L_V`` from the answer tokens' logits."""
    return weights @ F.cross_entropy(logits, labels, reduction="none")
