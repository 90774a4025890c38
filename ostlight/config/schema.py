"""All settings. A YAML file names those it changes; the rest keep the values below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Interval

from ostlight.config.budget import SOURCE, Budget
from ostlight.config.digitmath import DigitMath

Order = Literal["shuffled", "utility_descending", "utility_ascending", "annealed"]
Precision = Literal["auto", "32-true", "bf16-mixed", "bf16-true", "64-true"]
Attention = Literal["eager", "sdpa", "flash_attention_2"]
Part = Literal["vision", "projector", "language"]
Dtype = Literal["float32", "bfloat16", "float64"]
Duplicates = Literal["keep", "first", "reject"]
Unsupported = Literal["reject", "keep", "proportional"]
Protocol = Literal["equal_epochs", "equal_steps"]
BASE, ORACLE = "base", "oracle"
"""Rows of a benchmark's table that are not selectors: the target before training, and trained on clean samples only."""

Count = Annotated[int, Interval(ge=1, le=1_000_000_000)]
Processes = Annotated[int, Interval(ge=1, le=1024)]
Share = Annotated[float, Interval(ge=0, le=1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Seed = Annotated[int, Interval(ge=0, le=2**63 - 1)]


@dataclass
class Columns:
    """Columns of a table (or fields of records) by what they hold, for tables of no known layout.

    ``a.b`` reaches into a column of objects, ``a.0`` into one of lists. Columns that are not named stay tags.

    Attributes:
        question: column of the question, or several that are joined by newlines.
        answer: column of the answer, or several; a number is a choice where ``choices`` are given, else text.
        images: column of an image or a list of images (paths, bytes, base64), or several columns.
        choices: column with the list of choices, or one column for each; they are added to the question as ``A. ...``.
        system: column of the system prompt.
        messages: column with a list of turns, instead of ``question`` and ``answer``.
    """

    question: str | list[str] | None = None
    answer: str | list[str] | None = None
    images: str | list[str] | None = None
    choices: str | list[str] | None = None
    system: str | None = None
    messages: str | None = None

    def problems(self) -> Iterator[str]:
        if self.messages is not None and (self.question or self.answer or self.choices):
            yield "messages stands for question, answer and choices; give one or the other"
        if self.messages is None and not (self.question or self.images):
            yield "question is missing: name the column of the question, or `messages` for a column of turns"


@dataclass
class Piece:
    """One piece of a pool that lies in several places.

    Attributes:
        path: file, folder of files, or glob.
        image_root: folder of its images; by default that of the whole, or else the folder of each file.
        source: its records get this tag ``source``, in the place of their own.
        weight: makes its share of a budget larger or smaller than its share of the pool, by this factor; needs
            ``budget.stratify_by=source`` and a ``source``.
    """

    path: str = ""
    image_root: str | None = None
    source: str | None = None
    weight: Positive | None = None

    def problems(self) -> Iterator[str]:
        if not self.path:
            yield "path is missing: name a file, folder or glob"
        if self.weight is not None and self.source is None:
            yield "weight needs a name for what it weighs; set `source` beside it"


@dataclass
class Limits:
    """What a record may hold. What passes a limit is rejected before it is read or decoded.

    Attributes:
        image_pixels: width x height of one image.
        record_pixels: of all images of a record.
        image_bytes: of one image as its file or record holds it.
        record_bytes: of one record: a line, a table's row, the members of an archive.
        characters: of all texts of a record.
    """

    image_pixels: Annotated[int, Interval(ge=1, le=178_956_970)] = 64_000_000
    record_pixels: Count = 256_000_000
    image_bytes: Count = 50_000_000
    record_bytes: Count = 50_000_000
    characters: Count = 2_000_000


@dataclass
class Video:
    """How a video becomes images, for models that take several.

    Attributes:
        frames: images, evenly spaced over the video, in the place of its ``<video>``.
    """

    frames: Annotated[int, Interval(ge=1, le=1024)] = 8


@dataclass
class Data:
    """Where samples are read from.

    Attributes:
        path: file, folder of files, or glob; or a list of them, each with settings of its own where that is needed
            (``{path, image_root, source, weight}``). Of a clone of a data set of the hub, the training split is read.
        format: file format (``jsonl``, ``json``, ``csv``, ``parquet``, ``hf``, ``webdataset``) or record layout
            (``sharegpt``, ``messages``, ``conversation``, ``texts``, ``alpaca``, ``question``, ``prompt``); ``auto``
            recognizes both by the content.
        image_root: folder that image paths are relative to and must stay in; by default the folder of the file.
        columns: which columns hold question, answer and images, for tables of no known layout.
        duplicates: records that share an id: ``keep`` all (the second is called ``ID#2``), keep the ``first``, or
            ``reject`` all of them.
        background: colour behind the transparent pixels of images, by name or ``#rrggbb``.
        limits: what a record may hold.
        video: read videos as sampled frames (``video: {frames: 8}``; needs ``pip install 'ostlight[video]'``); ``null``
            rejects records with videos.
    """

    path: str | list[str | Piece] | None = None
    format: str = "auto"
    image_root: str | None = None
    columns: Columns | None = None
    duplicates: Duplicates = "keep"
    background: str = "white"
    limits: Limits = field(default_factory=Limits)
    video: Video | None = None

    @property
    def pieces(self) -> list[Piece]:
        """What ``path`` names, each with its image root."""
        named = self.path if isinstance(self.path, list) else [self.path] if self.path is not None else []
        pieces = [piece if isinstance(piece, Piece) else Piece(piece) for piece in named]
        return [replace(piece, image_root=piece.image_root or self.image_root) for piece in pieces]

    @property
    def weights(self) -> dict[str, float]:
        """The weights of pieces, by source."""
        return {p.source: p.weight for p in self.pieces if p.source is not None and p.weight is not None}

    def problems(self) -> Iterator[str]:
        if self.path == []:
            yield "path is an empty list; name at least one file"
        weights: dict[str | None, float | None] = {}
        for piece in self.pieces:
            if weights.setdefault(piece.source, piece.weight) != piece.weight:
                yield f"path: pieces of the source {piece.source!r} have different weights; give them one"


@dataclass
class PoolData(Data):
    """The samples to choose from.

    Attributes:
        unsupported: what becomes of records of media that the proxy cannot read, and so cannot score: ``reject``;
            ``keep`` all, beside the budget; or ``proportional``, as large a share of them as of the others, by chance.
        license: of the data, as the Hugging Face Hub names it (``cc-by-4.0``), or a list; for the card that
            ``ostlight export`` writes. By default what the records' own field ``license`` says.
    """

    unsupported: Unsupported = "reject"
    license: str | list[str] | None = None

    @property
    def licenses(self) -> list[str]:
        """The licences, as a list."""
        return [self.license] if isinstance(self.license, str) else list(self.license or [])


@dataclass
class Anchors(Data):
    """The small trusted set: a sample's utility is by how much one step on it lowers the loss on these.

    Attributes:
        group: tag that splits the anchors, for utilities by skill.
    """

    group: str | None = None


@dataclass
class Training:
    """How a model is fine-tuned.

    Attributes:
        epochs: passes over the training samples; one, if neither ``epochs`` nor ``steps`` is given.
        steps: optimizer steps, however many samples there are; instead of ``epochs``.
        batch_size: samples in one optimizer step, over all devices.
        lr: peak learning rate of AdamW.
        lr_vision: that of the vision tower; ``null`` for ``lr``.
        lr_projector: that of what turns its features into tokens; ``null`` for ``lr``.
        warmup: share of the steps with a rising learning rate.
        schedule: learning rate after the warm-up: ``cosine`` (to 0) or ``constant``.
        weight_decay: of AdamW.
        clip: largest gradient norm; ``null`` does not clip.
        order: of the samples in each epoch: ``shuffled``, by utility (``utility_descending``,
            ``utility_ascending``), or ``annealed`` (starts as ``utility_descending``, ends shuffled).
    """

    epochs: Positive | None = None
    steps: Count | None = None
    batch_size: Count = 16
    lr: Positive = 1e-5
    lr_vision: Positive | None = None
    lr_projector: Positive | None = None
    warmup: Annotated[float, Interval(ge=0, lt=1)] = 0.03
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: NotNegative = 0.0
    clip: Positive | None = 1.0
    order: Order = "shuffled"

    alternatives: ClassVar[tuple[str, ...]] = ("epochs", "steps")


@dataclass
class Model:
    """A model folder or hub name.

    Attributes:
        path: folder or hub name for ``from_pretrained``, or a folder of LoRA adapters saved by peft.
        trust_remote_code: run Python code that comes with the model.
        dtype: of the weights.
        max_length: tokens after which a sample is cut; cut answers are counted and reported.
        max_pixels: width times height of an image; a larger one is made smaller, in its shape, before the model's
            processor sees it. Where the tokens of an image grow with its size, that is what a long sample costs.
        attention: implementation, ``eager``, ``sdpa`` or ``flash_attention_2`` (needs the package flash-attn); ``null``
            takes that of the model folder, or else transformers' choice.
    """

    path: str | None = None
    trust_remote_code: bool = False
    dtype: Dtype = "float32"
    max_length: Count = 4096
    max_pixels: Count | None = None
    attention: Attention | None = None


@dataclass
class Warmup:
    """Brief fine-tuning of the proxy on a random part of the pool, before it scores.

    It stops early, or is undone, when the loss on trusted samples rises (the development set, or the anchors where
    there is none); the log says so.

    Attributes:
        fraction: share of the usable records, each drawn by its name (arXiv 2605.07488 found 0.05 best); 0 skips the
            warm-up.
    """

    fraction: Share = 0.05
    training: Training = field(default_factory=Training)

    def problems(self) -> Iterator[str]:
        if self.training.order != "shuffled":
            yield "training.order must be shuffled: no sample has a score before the warm-up"


@dataclass
class Proxy(Model):
    """The lightweight model that scores."""

    warmup: Warmup = field(default_factory=Warmup)


@dataclass
class Lora:
    """Low-rank adapters (peft), trained instead of the weights and merged into them at the end.

    Attributes:
        rank: of each adapter.
        alpha: scale; an adapter's product is multiplied by ``alpha / rank``.
        modules: adapted modules: ``all-linear``, or a regular expression over module names.
    """

    rank: Count = 16
    alpha: Count = 32
    modules: str = "all-linear"


@dataclass
class Target(Model):
    """The model that is finally trained on the subset.

    Attributes:
        name: of the trained model's folder below ``targets/``; by default made from the selection and these settings.
        freeze: parts that training leaves as they are: ``vision`` (the tower), ``projector``, ``language``.
        lora: train LoRA adapters (with about ten times the learning rate); ``null`` trains all weights.
        gradient_checkpointing: recompute activations in the backward pass: less memory, a third more work.
        precision: of its training; ``null`` takes ``compute.precision``. Scores of a proxy in ``32-true`` and a target
            in ``bf16-mixed``, say.
        patience: readings of the development loss (eight per training) without improvement until training stops;
            ``null`` never stops early. Needs ``dev.path``.
        checkpoint_minutes: longest time between two training checkpoints.
    """

    name: str | None = None
    training: Training = field(default_factory=Training)
    freeze: list[Part] = field(default_factory=list)
    lora: Lora | None = None
    gradient_checkpointing: bool = False
    precision: Precision | None = None
    patience: Count | None = 3
    checkpoint_minutes: NotNegative = 15.0

    def problems(self) -> Iterator[str]:
        if self.name is not None and not is_folder_name(self.name):
            yield f"name must be a plain folder name; got {self.name[:80]!r}"


@dataclass
class SelectorChoice:
    """A selector and its options.

    Attributes:
        name: of a registered selector (``ostlight selectors`` lists them).
        options: the selector's own settings.
        label: name in tables; by default ``name``.
    """

    name: str = "ost"
    options: dict[str, Any] = field(default_factory=dict)
    label: str | None = None

    @property
    def shown(self) -> str:
        return self.label or self.name


@dataclass
class Evaluation:
    """How answers are generated and judged.

    Attributes:
        marker: text whose last occurrence is followed by the final answer; ``null`` takes what the last
            ``\\boxed{}`` holds, else the whole answer.
        max_new_tokens: longest generated answer; a warning counts those that had not ended by then.
        by: tag to report accuracy by.
        batch_size: samples generated at once.
    """

    marker: str | None = None
    max_new_tokens: Count = 64
    by: str | None = None
    batch_size: Count = 64

    def problems(self) -> Iterator[str]:
        if self.marker is not None and not self.marker.strip():
            yield "marker is empty; name the text before the final answers, or leave it out (null)"


@dataclass
class Compute:
    """Where and how it runs; none of it changes a score beyond rounding.

    Attributes:
        engine: what spreads scoring and the tasks of a benchmark: ``local`` (this machine, or the ranks that Lightning,
            torchrun or SLURM start) or ``ray`` (every device of a Ray cluster, whose nodes may come and go; needs
            ``pip install 'ostlight[ray]'``). Training is always Lightning's.
        address: of a Ray cluster, ``HOST:PORT`` or ``auto``; ``null`` takes the one that ``RAY_ADDRESS`` names, or
            starts one on this machine.
        accelerator: of Lightning's Trainer: ``auto``, ``cpu``, ``gpu``, ...
        devices: devices on each node; a benchmark gives each of its tasks one.
        num_nodes: machines.
        strategy: of Lightning's Trainer; ``fsdp`` (FSDP2) shards the target, and means ``ddp`` in earlier stages.
        shard_proxy: with ``strategy: fsdp`` and several devices, shard the proxy too while it is warmed up and scores,
            where it does not fit on one. Selectors of forward passes alone score it (``loss``; ``ost`` with
            ``estimator: finite_difference``, its default for ungrouped anchors, in fp32); others are refused.
        precision: of Lightning's Trainer; ``auto`` is ``bf16-mixed`` on a CUDA device that computes in bf16, else
            ``32-true``.
        tokens_per_batch: padded tokens in one forward pass; samples of similar length share a batch.
        shard_size: records in one score file, the unit at which a stopped run resumes.
        workers: processes of each device that read, decode and encode records ahead, in every stage; 0 reads in the
            main process. ``null`` takes one for each core that is left, or a quarter of the cores where these compute
            too; at most 8, and fewer where there are few records.
        vision_cache_gib: of the features of images that a frozen vision tower gives, stored in ``~/.cache/ostlight``
            (``OSTLIGHT_CACHE``) for every stage, run and worker, where reading them is faster than computing them; 0
            computes them each time.
        logger: of training curves; ``wandb`` is offline unless its environment variables say otherwise, ``mlflow``
            writes to ``mlflow.db`` in the run folder or where ``MLFLOW_TRACKING_URI`` says, ``trackio`` on this machine
            or where ``TRACKIO_DIR``, ``TRACKIO_SPACE_ID`` or ``TRACKIO_SERVER_URL`` say.
        progress: show what every phase longer than two seconds does, how far it is and how long it will take: bars in a
            terminal, text in a notebook, and a line about every ten seconds in the log.
    """

    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    accelerator: str = "auto"
    devices: Processes = 1
    num_nodes: Count = 1
    strategy: str = "auto"
    shard_proxy: bool = False
    precision: Precision = "auto"
    tokens_per_batch: Count = 16_384
    shard_size: Count = 1_000
    workers: Annotated[int, Interval(ge=0, le=1024)] | None = None
    vision_cache_gib: NotNegative = 8.0
    logger: Literal["csv", "tensorboard", "wandb", "mlflow", "trackio", "none"] = "csv"
    progress: bool = True

    def problems(self) -> Iterator[str]:
        if self.shard_proxy and self.strategy != "fsdp":
            yield f"shard_proxy is for strategy=fsdp; strategy is {self.strategy}"
        if self.shard_proxy and self.engine == "ray":
            yield "shard_proxy shards over ranks, which a Ray cluster does not have; set engine=local"
        if self.address is not None and self.engine != "ray":
            yield "address is that of a Ray cluster; set engine=ray, or leave it out"
        if self.address is not None and self.address.startswith("ray://"):
            yield (
                f"address={self.address}: a remote client cannot see the run folder; submit the command to the cluster "
                "(`ray job submit -- ostlight select ...`), or run it on a node with address=auto"
            )


@dataclass
class Plan:
    """What ``ostlight plan`` takes for granted in the place of what it reads off the files and this machine.

    Attributes:
        records, anchors, test: how many there are; ``null`` counts those of the files.
        tokens: mean length of a sample, its images among them; ``null`` encodes some records of the pool.
        answer_tokens, image_tokens: how many of these tokens are answer, and image; read where ``tokens`` is set.
        record_bytes: of a record's text and images, for the size of the subset; ``null`` leaves it out.
        flops_per_s: that one device reaches; ``null`` multiplies two matrices on this machine and takes
            ``utilization`` of that rate.
        utilization: share of a large matrix product's rate that training and scoring reach.
        device_gib: memory of one device; ``null`` reads this machine's.
        judge_parameters: of the judge the plan is compared with; ``null`` takes the target.
        judge_tokens: what the judge reads and writes besides the sample: rubric and reply.
    """

    records: Count | None = None
    anchors: Count | None = None
    test: Count | None = None
    tokens: Count | None = None
    answer_tokens: Count = 64
    image_tokens: Annotated[int, Ge(0)] = 0
    record_bytes: Count | None = None
    flops_per_s: Positive | None = None
    utilization: Annotated[float, Interval(gt=0, le=1)] = 0.4
    device_gib: Positive | None = None
    judge_parameters: Positive | None = None
    judge_tokens: Count = 600

    def problems(self) -> Iterator[str]:
        if self.tokens is not None and self.answer_tokens + self.image_tokens >= self.tokens:
            yield f"tokens must be more than answer_tokens + image_tokens; got {self.tokens}"
        if self.tokens is None and self.image_tokens:
            yield "image_tokens needs tokens: the whole length of a sample; leave both out to read some records"


@dataclass
class Variant:
    """Some settings changed, for the whole benchmark: another target, another warm-up, other anchors.

    Attributes:
        label: name in tables.
        overrides: ``key=value`` as on the command line.
    """

    label: str = ""
    overrides: list[str] = field(default_factory=list)


@dataclass
class Benchmark:
    """Selectors x budgets x protocols x seeds, each trained and evaluated; all of it for every variant.

    Attributes:
        protocols: ``equal_epochs`` (the target's epochs: a small subset takes fewer steps) or ``equal_steps`` (as many
            optimizer steps as the full pool takes).
        seeds: of random selection and of training, one repetition each.
        defect_labels: table of ``id`` and ``defect`` (null where clean), read after selection to report which defects
            were kept and to train the ``oracle`` row (clean samples only).
        auroc_within: tags. Where defect labels are given, ``auroc.csv`` says how well each selector's scores separate
            clean from defective records: over all pairs, and over pairs with the same value of each of these tags.
        train: ``false`` scores and selects, and trains nothing.
        metric: ``accuracy`` of generated answers, or ``loss``, the mean loss of the expected answers in nats, for which
            nothing is generated.
        baseline: label of the row that others are compared to: a selector's, ``base`` or ``oracle``; by default
            ``random``, else the first selector.
        workers: processes that share the work; 1 runs it in this process, ``null`` takes one per device, or per core
            as far as memory allows. With ``compute.engine=ray`` every device of the cluster works, and it must be
            ``null``.
    """

    selectors: list[SelectorChoice] = field(default_factory=list)
    budgets: list[Budget] = field(default_factory=list)
    protocols: list[Protocol] = field(default_factory=lambda: ["equal_steps"])
    seeds: list[Seed] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    defect_labels: str | None = None
    auroc_within: list[str] = field(default_factory=list)
    train: bool = True
    metric: Literal["accuracy", "loss"] = "accuracy"
    baseline: str | None = None
    workers: Processes | None = None
    variants: list[Variant] = field(default_factory=list)

    @property
    def compared_to(self) -> str:
        """Label of the baseline."""
        labels = [s.shown for s in self.selectors]
        return self.baseline or ("random" if "random" in labels else labels[0])

    def problems(self) -> Iterator[str]:
        labels, variants = [s.shown for s in self.selectors], [v.label for v in self.variants]
        budgets = [b.label for b in self.budgets]
        for name in ("selectors", "budgets", "seeds", "protocols"):
            if not getattr(self, name):
                yield f"{name} is empty: name at least one"
        for name, given in (("selectors", labels), ("variants", variants)):
            for label in _repeated(given):
                yield f"{name}: two are called {label!r}; give one of them another `label`"
        for name, values in (("seeds", self.seeds), ("budgets", budgets), ("protocols", self.protocols)):
            for value in _repeated(values):
                yield f"{name} holds {value} twice; remove one"
        for label in sorted({BASE, ORACLE} & {*labels}):
            yield f"selectors: one is called {label!r}, which is another row of the table; give it another `label`"
        if "" in variants:
            yield "variants: every variant needs a label"
        rows = [*labels, BASE, ORACLE]
        if self.baseline is not None and self.baseline not in rows:
            yield f"baseline must be one of {', '.join(rows)}; got {self.baseline!r}"


@dataclass
class Config:
    """One run.

    Attributes:
        name: of the run; its folder is ``folder/name``.
        folder: that holds the run folders.
        seed: of random selection, of the warm-up and of training.
        tolerate: what ``ostlight select`` ends with exit status 0 in spite of, instead of 3: ``rejections`` (more than
            half of the records were rejected), ``divergence`` (the warm-up's loss grew beyond twice what it was).
        written: no setting: path, text and value of what resolvers stand for (``config.load``).
    """

    name: str = "run"
    folder: str = "runs"
    seed: Seed = 0
    tolerate: list[Literal["rejections", "divergence"]] = field(default_factory=list)
    digitmath: DigitMath | None = None
    pool: PoolData = field(default_factory=PoolData)
    anchors: Anchors = field(default_factory=Anchors)
    dev: Data = field(default_factory=Data)
    test: Data = field(default_factory=Data)
    proxy: Proxy = field(default_factory=Proxy)
    target: Target = field(default_factory=Target)
    selector: SelectorChoice = field(default_factory=SelectorChoice)
    budget: Budget = field(default_factory=Budget)
    evaluation: Evaluation = field(default_factory=Evaluation)
    compute: Compute = field(default_factory=Compute)
    plan: Plan = field(default_factory=Plan)
    benchmark: Benchmark | None = None
    written: dict[str, Any] = field(default_factory=dict, metadata={"hidden": True}, compare=False, repr=False)

    def problems(self) -> Iterator[str]:
        if not is_folder_name(self.name):
            yield f"name must be a plain folder name; got {self.name[:80]!r}"
        if self.digitmath is None and self.pool.path is None and self.plan.records is None:
            yield "pool.path is missing: name your data there, or add `digitmath: {}` for the built-in pool"
        yield from self._weight_problems()
        if self.benchmark is not None and self.pool.unsupported != "reject":
            yield (
                f"pool.unsupported={self.pool.unsupported}: a benchmark trains on scored records alone; leave it out "
                "here, and set it for `ostlight select`"
            )
        if self.benchmark is not None and self.benchmark.workers is not None and self.compute.engine == "ray":
            yield (
                f"benchmark.workers={self.benchmark.workers}: with compute.engine=ray as many tasks run as the cluster "
                "has devices; leave it out"
            )
        steps = self.target.training.steps
        if self.benchmark is not None and "equal_epochs" in self.benchmark.protocols and steps is not None:
            yield (
                f"benchmark.protocols: equal_epochs needs epochs, but target.training.steps={steps} fixes the steps; "
                "set target.training.epochs instead, or drop equal_epochs"
            )

    def _weight_problems(self) -> Iterator[str]:
        for name in ("anchors", "dev", "test"):
            if getattr(self, name).weights:
                yield f"{name}.path: only the pieces of the pool have a weight; leave it out"
        budgets = {"budget": self.budget} if self.benchmark is None else {}
        if self.benchmark is not None:
            budgets = {f"benchmark.budgets[{k}]": budget for k, budget in enumerate(self.benchmark.budgets)}
        for where, budget in budgets.items():
            if self.pool.weights and (budget.stratify_by != SOURCE or budget.threshold is not None):
                yield (
                    f"{where} has no share for each source, so the weights in pool.path have no effect; set "
                    f"{where}.stratify_by={SOURCE} with a fraction, count or tokens, or leave the weights out"
                )


def is_folder_name(name: str) -> bool:
    """Whether it names a folder in another, on any file system: not ``.`` or ``..``, without ``/``, ``\\`` and
    characters that cannot be seen."""
    plain = name.isprintable() and name == name.strip() and not {"/", "\\"} & {*name}
    return plain and name not in ("", ".", "..") and len(name.encode()) <= 200


def _repeated(values: Sequence[Any]) -> list[Any]:
    """Values that occur more than once, each once."""
    return [value for value, count in Counter(values).items() if count > 1]
