"""Every setting there is. A YAML file names those it changes; the rest keep the values below."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ostlight.config.budget import Budget
from ostlight.config.digitmath import DigitMath

ORDERS = ("shuffled", "utility_descending", "utility_ascending", "annealed")
BASE, ORACLE = "base", "oracle"
"""Rows of a benchmark's table that are no selectors and frame them."""
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "64-true")


@dataclass
class Data:
    """Where samples are read from.

    Attributes:
        path: a file, a folder of files, or a glob.
        format: ``auto`` looks at the content; else a format's name (`ostlight.data.formats`).
        image_root: pictures are opened under it only; by default the folder of the file that names them.
    """

    path: str | None = None
    format: str = "auto"
    image_root: str | None = None


@dataclass
class Anchors(Data):
    """The small trusted set. ``group`` names the tag that splits it, for utilities by skill."""

    group: str | None = None


@dataclass
class Training:
    """How a model is fine-tuned. At most one of ``epochs`` and ``steps``; neither means one epoch.

    Attributes:
        epochs: passes over the training samples.
        steps: optimiser steps, whatever the number of samples (samples are then seen as often as it takes).
        batch_size: samples in one optimiser step.
        lr: peak learning rate of AdamW.
        warmup: share of the steps over which the learning rate rises from 0.
        schedule: ``cosine`` (to 0) or ``constant``.
        weight_decay: AdamW's.
        clip: largest gradient norm, ``null`` for none.
        order: of the samples within each pass: ``shuffled``, or by their score: ``utility_descending`` (most useful
            first), ``utility_ascending`` (most useful last), ``annealed`` (begins as utility_descending and ends as
            a shuffle).
    """

    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 16
    lr: float = 1e-5
    warmup: float = 0.03
    schedule: str = "cosine"
    weight_decay: float = 0.0
    clip: float | None = 1.0
    order: str = "shuffled"

    def problems(self, where: str) -> list[str]:
        """What is wrong with the settings, in words."""
        found = []
        if self.epochs is not None and self.steps is not None:
            found.append(f"{where} takes one of epochs and steps; got epochs={self.epochs}, steps={self.steps}")
        for name in ("epochs", "steps", "batch_size", "lr", "clip"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                found.append(f"{where}.{name} must be above 0; got {value}")
        if self.weight_decay < 0:
            found.append(f"{where}.weight_decay must be at least 0; got {self.weight_decay}")
        if not 0 <= self.warmup < 1:
            found.append(f"{where}.warmup must be at least 0 and below 1; got {self.warmup}")
        if self.schedule not in ("cosine", "constant"):
            found.append(f"{where}.schedule must be cosine or constant; got {self.schedule!r}")
        if self.order not in ORDERS:
            found.append(f"{where}.order must be one of {', '.join(ORDERS)}; got {self.order!r}")
        return found


@dataclass
class Model:
    """A model folder or hub name.

    Attributes:
        path: what ``from_pretrained`` takes, or a folder of LoRA adapters that peft saved, whose base model is named
            inside; a proxy keeps them apart (parameters ``lora``, and all that its warm-up trains), a target merges
            them.
        trust_remote_code: runs Python that comes with the model; leave it off unless you have read it.
        dtype: of the weights: ``float32``, ``bfloat16``, ``float64``.
        max_length: tokens after which a sample is cut; cut answers are counted and reported.
    """

    path: str | None = None
    trust_remote_code: bool = False
    dtype: str = "float32"
    max_length: int = 4096


@dataclass
class Warmup:
    """Brief fine-tuning of the proxy on a random part of the pool, before it scores.

    It stops early, or is undone, when the anchor loss rises; the run says so.

    Attributes:
        fraction: share of the pool (arXiv 2605.07488 found 0.05 best); 0 leaves the proxy as it is.
        training: use the step size of the real fine-tuning: a larger one can ruin the proxy.
    """

    fraction: float = 0.05
    training: Training = field(default_factory=Training)


@dataclass
class Proxy(Model):
    """The lightweight model that scores."""

    warmup: Warmup = field(default_factory=Warmup)


@dataclass
class Lora:
    """Low-rank adapters (peft) that are trained in the place of the weights, and merged into them at the end.

    Attributes:
        rank: of each adapter.
        alpha: its product is scaled by ``alpha / rank``.
        modules: what is adapted: ``all-linear``, or a regular expression over module names.
    """

    rank: int = 16
    alpha: int = 32
    modules: str = "all-linear"


@dataclass
class Target(Model):
    """The model that is finally trained on the subset.

    Attributes:
        training: a learning rate ten times that of full fine-tuning suits adapters.
        lora: trains adapters; ``null`` trains all weights.
        gradient_checkpointing: computes each block anew in the backward pass: less memory, a third more work.
        patience: of ``ostlight train``, where ``dev.path`` names a development set. Its loss is read eight times in the
            course of a training and the best weights are kept; after so many readings without a new best training
            stops. ``null`` never stops early.
        checkpoint_minutes: ``ostlight train`` can be killed and goes on from a checkpoint of at most this age.
    """

    training: Training = field(default_factory=Training)
    lora: Lora | None = None
    gradient_checkpointing: bool = False
    patience: int | None = 3
    checkpoint_minutes: float = 15.0

    def problems(self) -> list[str]:
        """What is wrong with the settings, in words."""
        found = self.training.problems("target.training")
        for name in ("rank", "alpha"):
            if self.lora is not None and getattr(self.lora, name) <= 0:
                found.append(f"target.lora.{name} must be above 0; got {getattr(self.lora, name)}")
        if self.patience is not None and self.patience < 1:
            found.append(f"target.patience must be at least 1, or null to train to the end; got {self.patience}")
        if self.checkpoint_minutes < 0:
            found.append(f"target.checkpoint_minutes must be at least 0; got {self.checkpoint_minutes}")
        return found


@dataclass
class SelectorChoice:
    """A registered selector, its options, and the name it has in tables."""

    name: str = "ost"
    options: dict[str, Any] = field(default_factory=dict)
    label: str | None = None

    @property
    def shown(self) -> str:
        return self.label or self.name


@dataclass
class Evaluation:
    """How answers are judged.

    Attributes:
        marker: the final answer is what follows the last occurrence of this word; ``null`` takes the whole answer.
        max_new_tokens: longest generated answer.
        by: tag to report accuracy by.
        batch_size: samples generated at once.
    """

    marker: str | None = None
    max_new_tokens: int = 64
    by: str | None = None
    batch_size: int = 64


@dataclass
class Compute:
    """Where and how it runs; none of it changes a score beyond rounding.

    Attributes:
        accelerator, devices, num_nodes: Lightning's Trainer arguments; a benchmark takes one device a task, and shares
            the tasks (``benchmark.workers``).
        strategy: Lightning's too; ``fsdp`` shards the target (FSDP2), and is ``ddp`` for the stages before.
        precision: ``32-true``, ``bf16-mixed``, ``bf16-true`` or ``64-true``.
        tokens_per_batch: padded tokens in one forward pass; batches are filled with samples of like length.
        shard_size: records in one score file, the unit a stopped run resumes at.
        workers: processes that read and encode ahead; 0 reads in the main process.
        logger: ``csv``, ``tensorboard``, ``wandb`` (offline unless the environment says otherwise) or ``none``.
        progress: whether to draw progress bars.
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    tokens_per_batch: int = 16_384
    shard_size: int = 1_000
    workers: int = 0
    logger: str = "csv"
    progress: bool = True


@dataclass
class Variant:
    """Some settings changed, for every cell: another target, another warm-up, other anchors, other noise.

    Attributes:
        label: its name in tables.
        overrides: ``key=value`` as on the command line; ``benchmark.selectors=[...]`` among them narrows the rivals.
    """

    label: str = ""
    overrides: list[str] = field(default_factory=list)


@dataclass
class Benchmark:
    """Selectors x budgets x protocols x seeds, each trained and evaluated; all of it for every variant.

    Attributes:
        selectors: the rivals. One that ignores the budget appears once.
        budgets: what each may keep.
        protocols: ``equal_epochs`` (the target's epochs: steps shrink with the subset) and ``equal_steps`` (as many
            optimiser steps as the full pool would take, for all).
        seeds: each seed draws its own random subset and trains in its own order.
        defect_labels: a table of ``id`` and ``defect`` (null where clean), read after the fact to report what was
            kept and to train the ``oracle`` row (clean samples only). No selector sees it.
        baseline: label of the row the others are compared to: a selector's, ``base`` or ``oracle``; ``null`` takes
            ``random`` where it takes part, else the first selector.
        workers: processes that share the cells; ``null`` takes one a device, or without accelerator one a core, as many
            as memory holds, each with one thread; a number of them shares the cores out. Several ``ostlight benchmark``
            on one folder share them too. 1 runs all in this process.
        variants: none runs the configuration as it is. What variants have in common is made once.
    """

    selectors: list[SelectorChoice] = field(default_factory=list)
    budgets: list[Budget] = field(default_factory=list)
    protocols: list[str] = field(default_factory=lambda: ["equal_steps"])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    defect_labels: str | None = None
    baseline: str | None = None
    workers: int | None = None
    variants: list[Variant] = field(default_factory=list)

    @property
    def compared_to(self) -> str:
        """Label of the baseline."""
        shown = [s.shown for s in self.selectors]
        return self.baseline or ("random" if "random" in shown else shown[0])


@dataclass
class Config:
    """One run. Its folder is ``folder/name``."""

    name: str = "run"
    folder: str = "runs"
    seed: int = 0
    digitmath: DigitMath | None = None
    pool: Data = field(default_factory=Data)
    anchors: Anchors = field(default_factory=Anchors)
    dev: Data = field(default_factory=Data)
    test: Data = field(default_factory=Data)
    proxy: Proxy = field(default_factory=Proxy)
    target: Target = field(default_factory=Target)
    selector: SelectorChoice = field(default_factory=SelectorChoice)
    budget: Budget = field(default_factory=Budget)
    evaluation: Evaluation = field(default_factory=Evaluation)
    compute: Compute = field(default_factory=Compute)
    benchmark: Benchmark | None = None
