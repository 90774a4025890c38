"""Scores a pool: one row of the score table for every record."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lightning as L
import pyarrow.parquet as pq

from ostlight.config.schema import Config, SelectorChoice
from ostlight.data.checked_json import read_json
from ostlight.data.checked_parquet import is_whole
from ostlight.data.pool import Pool
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, DataError, reading_back
from ostlight.models.batch import Batch
from ostlight.models.encoding.encoder import QuestionEncoder
from ostlight.models.module import MultimodalModel
from ostlight.models.read_ahead import worker_count
from ostlight.models.vision.cache import opened
from ostlight.pipeline import fingerprint
from ostlight.pipeline.images_read import check_images, rejected_reasons
from ostlight.pipeline.inputs import LoadedAnchors, read_anchors, warn_of_overlap
from ostlight.pipeline.memory import fitted
from ostlight.pipeline.required import refuse_unsuited_anchors
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.scored_dependencies import DependencyState
from ostlight.pipeline.scoring.module import ScoringModule
from ostlight.pipeline.scoring.overlap import OverlapWatch
from ostlight.pipeline.scoring.stream import Encoding, ShardStream
from ostlight.pipeline.scoring.writer import ShardWriter, audit, missing_shards, part
from ostlight.pipeline.sharded_proxy import refuse_sharding, shards_proxy
from ostlight.pipeline.unsupported import announce
from ostlight.pipeline.warmup import proxy_fingerprints, seconds_per_sample, warm_up_proxy
from ostlight.progress import phase
from ostlight.ranks import is_first_rank
from ostlight.selection.context import ProxyContext, ScoringContext
from ostlight.selection.notes import read_notes, remove_notes
from ostlight.selection.registry import create
from ostlight.selection.scores import read_score_table
from ostlight.selection.selector import Selector
from ostlight.training.optimizer_records import median_update_norm
from ostlight.training.trainer import make_trainer, quiet_lightning

log = logging.getLogger(__name__)


ShardEngine = Callable[["ScoringJob", Sequence[int], Mapping[int, Sequence[int]]], None]
"""Scores missing shards, and retried records by shard, of a job whose dependencies are scored."""


@dataclass(frozen=True)
class ScoringJob:
    """What is scored, how, and where the scores go.

    Attributes:
        config: of the run.
        folder: gets ``scores/``.
        proxy_folder: the run folder whose warmed-up proxy is used, or that gets it; by default ``folder``.
        dependencies: run folders whose scores are complete, by the label of the dependency they were made for. A
            dependency that is not listed is scored in ``dependencies/LABEL`` of ``folder``.
        engine: what scores the missing shards and the retried records; ``None`` for this process and its ranks.
    """

    config: Config
    folder: RunFolder
    pool: Pool
    selector: Selector
    proxy_folder: RunFolder | None = None
    dependencies: Mapping[str, RunFolder] = field(default_factory=dict)
    engine: ShardEngine | None = None

    @property
    def shards(self) -> int:
        """Number of score files."""
        return -(-len(self.pool) // self.config.compute.shard_size)


def score_pool(job: ScoringJob) -> None:
    """Writes ``scores/part-*.parquet``, one row for every record of the pool; resumes where it was stopped.

    Raises:
        RunChangedError: the folder holds scores made from other inputs.
        DataError: a dependency that is listed as scored is not.
        SelectorError: the selector fails, or breaks its contract.
    """
    anchors = read_anchors(job.config)
    refuse_unsuited_anchors(anchors, job.config.selector.shown, job.selector)
    origin = rescored_from(job.folder)
    if not origin:
        config = fitted(
            job.config, job.folder, job.selector, anchors, not missing_shards(job.folder.scores, job.shards)
        )
        job.folder.config = config
        job = dataclasses.replace(job, config=config)
    made_from = scoring_fingerprints(job.config, job.pool, anchors, job.selector) | origin
    has_scores = _holds_scores(job.folder.scores)
    job.folder.claim(
        "scores", made_from, not has_scores, clear=lambda: _clear(job.folder), holds_work=has_scores and is_first_rank()
    )
    job.folder.write_config()
    if origin:
        _check_rescored(job, origin)
        return
    missing, retried = missing_shards(job.folder.scores, job.shards), _retried(job)
    damaged = [shard for shard in missing if part(job.folder.scores, shard).exists()]
    if damaged:
        names = ", ".join(part(job.folder.scores, shard).name for shard in damaged[:3])
        log.warning(f"scores: {len(damaged)} files are damaged ({names}); their records are scored again")
    if not missing and not retried:
        log.info(f"scores: all {len(job.pool):,} records are scored in {job.folder.scores}")
        return
    refuse_sharding(job.config, job.config.selector.shown, job.selector, anchors.group_count)
    # Here the pool is looked through as it is scored (OverlapWatch); another engine's batches are not seen.
    warn_of_overlap(job.config, anchors, job.pool if job.engine is not None else None)
    dependencies = {choice.shown: _scored_dependency(job, choice) for choice in job.selector.dependencies()}
    job = dataclasses.replace(job, dependencies=dependencies)
    state = DependencyState(job.folder, dependencies)
    if state.has_changed:
        # One record more or less moves clusters, ranks and gains of all.
        names = ", ".join(dependencies)
        log.info(f"scores: those of {names} have changed, so all {len(job.pool):,} records are scored again")
        _clear(job.folder)
        missing, retried = list(range(job.shards)), {}
    if job.engine is not None:
        job.engine(job, missing, retried)
    else:
        context = scoring_context(job, anchors)
        announce_unsupported(job, context)
        _score_shards(job, context, missing, retried)
    log.info(audit(job.folder.scores, len(job.pool)))
    state.write()


def _holds_scores(scores: Path) -> bool:
    """Whether any record has a score: where all were rejected, a setting was wrong, and there is nothing to lose."""
    for scored in filter(is_whole, scores.glob("part-*.parquet")):
        file = pq.ParquetFile(scored)
        if file.metadata.num_rows and file.read(["score"])["score"].null_count < file.metadata.num_rows:
            return True
    return False


def _clear(folder: RunFolder) -> None:
    """Removes what scoring without a result has left."""
    for file in (*folder.scores.glob("part-*.parquet"), *folder.images.glob("part-*.parquet")):
        file.unlink(missing_ok=True)
    remove_notes(folder.path / "selector")


def retried_records(
    folder: RunFolder, pool: Pool, selector: Selector, run: RunFolder | None = None
) -> tuple[list[int], list[int]]:
    """Returns positions of rejected records that are scored again: of those whose images can be read by now, and of
    those whose reason the selector names as one that may have passed.

    Args:
        run: as for ``check_images``.

    Raises:
        RunChangedError: an image that a score was made from is another one.
    """
    readable, passed = check_images(folder, pool, run), selector.retried_reasons
    failed = [p for p, reason in rejected_reasons(folder.scores).items() if reason in passed] if passed else []
    return readable, failed


def _retried(job: ScoringJob) -> dict[int, list[int]]:
    """Returns the rejected records to score again, by shard: those whose images can be read by now, and those whose
    reason the selector names as one that may have passed.

    Raises:
        RunChangedError: an image that a score was made from is another one.
    """
    readable, failed = retried_records(job.folder, job.pool, job.selector)
    shards: dict[int, list[int]] = {}
    for position in sorted({*readable, *failed}):
        shards.setdefault(position // job.config.compute.shard_size, []).append(position)
    if readable:
        log.info(
            f"scores: {len(readable):,} rejected records are scored again: their images are there now, or are others"
        )
    if failed:
        log.info(
            f"scores: {len(failed):,} records that {job.config.selector.shown} gave no score for are asked about again"
        )
    return shards


def scoring_fingerprints(config: Config, pool: Pool, anchors: LoadedAnchors, selector: Selector) -> dict[str, str]:
    """Returns the fingerprint of everything a score depends on, by a name the user understands."""
    no_score = (*selector.selection_options, *selector.compute_options)
    options = {name: value for name, value in dataclasses.asdict(selector.options).items() if name not in no_score}
    fingerprints = {
        "pool": pool.fingerprint()[:16],
        "anchors": anchors.fingerprint,
        "selector": config.selector.name,
        "selector.options": fingerprint.of_values(options),
        "selector's code": fingerprint.of_class(type(selector)),
        "compute.shard_size": str(config.compute.shard_size),
        "seed": str(config.seed),
        "scoring code": fingerprint.of_code(*fingerprint.SCORING),
        "package versions": fingerprint.package_versions(),
    }
    fingerprints |= {f"selector.options.{name}": value for name, value in selector.fingerprints().items()}
    if selector.uses_proxy:
        fingerprints |= proxy_fingerprints(config, pool, anchors)
    for choice in selector.dependencies():
        dependency = create(choice.name, choice.options)
        needed = scoring_fingerprints(dataclasses.replace(config, selector=choice), pool, anchors, dependency)
        fingerprints |= {f"{choice.shown}: {k}": value for k, value in needed.items() if fingerprints.get(k) != value}
    return fingerprints


def _check_rescored(job: ScoringJob, origin: dict[str, str]) -> None:
    """Raises:
    DataError: ``ostlight rescore`` was broken off; what is missing may not be scored in another way.
    RunChangedError: images are others than those that were scored.
    """
    if missing_shards(job.folder.scores, job.shards):
        raise DataError(
            f"{job.folder.scores} is not complete; run `ostlight rescore` again with the configuration of "
            f"{origin['rescored from']}"
        )
    check_images(job.folder, job.pool)
    log.info(f"scores: approximate utilities for these anchors, from what {origin['rescored from']} has stored")


def rescored_from(folder: RunFolder) -> dict[str, str]:
    """Returns where the scores of a folder that ``ostlight rescore`` made come from, and the fingerprint of those, as
    further fingerprints; nothing of any other folder."""
    if not folder.rescored.exists():
        return {}
    with reading_back(folder.rescored, f"remove {folder.path}, and run `ostlight rescore` again"):
        return read_json(folder.rescored)


def scoring_context(job: ScoringJob, anchors: LoadedAnchors) -> ScoringContext:
    """Warms up the proxy, and returns what the selector's ``setup`` is given; its dependencies are scored."""
    tables = {label: read_score_table(scored.scores) for label, scored in job.dependencies.items()}
    folders = {label: scored.path / "selector" for label, scored in job.dependencies.items()}
    notes = {label: read_notes(folder) for label, folder in folders.items()}
    proxy = None
    if job.selector.uses_proxy:
        folder = job.proxy_folder or job.folder
        proxy = proxy_context(job, folder, warm_up_proxy(job.config, folder, job.pool, anchors))
    return ScoringContext(
        anchors=anchors.samples,
        groups=anchors.groups,
        seed=job.config.seed,
        folder=job.folder.path / "selector",
        _proxy=proxy,
        dependencies=tables,
        dependency_notes=notes,
        dependency_folders=folders,
        group_tag=job.config.anchors.group,
    )


def _scored_dependency(job: ScoringJob, choice: SelectorChoice) -> RunFolder:
    """Returns the run folder of a selector that this one needs; scores the pool by it where that was not done."""
    scored = job.dependencies.get(choice.shown)
    if scored is not None:
        if missing_shards(scored.scores, job.shards):
            raise DataError(f"{choice.shown}: {scored.scores} does not hold the scores of the whole pool")
        return scored
    parent = job.folder.path / "dependencies"
    config = dataclasses.replace(job.config, name=choice.shown, folder=str(parent), selector=choice)
    folder = RunFolder.of(config)
    folder.cost_log = job.folder.cost_log
    selector = create(choice.name, choice.options)
    proxy_folder = job.proxy_folder or job.folder
    score_pool(ScoringJob(config, folder, job.pool, selector, proxy_folder, engine=job.engine))
    return folder


def announce_unsupported(job: ScoringJob, context: ScoringContext) -> None:
    """Says before scoring how many records the proxy cannot read."""
    encoder = context.proxy.model.encoder if job.selector.uses_proxy else None
    takes_images, takes_tools = (encoder.takes_images, encoder.chat.takes_tools) if encoder else (True, True)
    announce(job.pool, job.config.pool.unsupported, takes_images, takes_tools)


def proxy_context(job: ScoringJob, folder: RunFolder, proxy: MultimodalModel) -> ProxyContext:
    """Returns a proxy as a selector is given it; ``folder`` is that of the run that warmed it up."""
    warmed_up = job.config.proxy.warmup.fraction > 0
    return ProxyContext(
        model=proxy,
        folder=folder.proxy,
        records=len(job.pool),
        examples=lambda count: _random_examples(job, proxy, count),
        update_norm=lambda parameters: median_update_norm(folder.proxy, parameters) if warmed_up else None,
        warmed_up=warmed_up,
        lr=job.config.proxy.warmup.training.lr,
        tokens_per_batch=job.config.compute.tokens_per_batch,
        seconds_per_sample=seconds_per_sample(folder),
    )


def make_encoding(job: ScoringJob, proxy: MultimodalModel) -> Encoding:
    """Returns how samples become batches for a proxy."""
    encoder = proxy.encoder if job.selector.needs_answers else QuestionEncoder(proxy.encoder)
    return Encoding(encoder, proxy.collator)


def _random_examples(job: ScoringJob, proxy: MultimodalModel, count: int) -> Iterator[Batch]:
    """Yields ``count`` usable samples: the next ones stand in for those that cannot be used."""
    encoding, found = make_encoding(job, proxy), 0
    with phase("samples of the pool", count, "samples") as read_so_far:
        for _, read in job.pool.read(job.pool.random_positions(len(job.pool), job.config.seed)):
            if found == count:
                return
            if isinstance(read, Sample):
                # A record that cannot be encoded is rejected with its reason when it is scored.
                with contextlib.suppress(BadRecord):
                    encoded = encoding.encoder.encode(read)
                    found += 1
                    yield encoding.batch([read], [encoded]).to(proxy.device)
                    read_so_far.advance()


@quiet_lightning()
def _score_shards(
    job: ScoringJob, context: ScoringContext, missing: Sequence[int], retried: Mapping[int, Sequence[int]]
) -> None:
    """Runs the selector over the missing shards and the retried records under ``Trainer.predict`` and logs what that
    cost."""
    compute = job.config.compute
    encoding = make_encoding(job, context.proxy.model) if job.selector.uses_proxy else None
    stream = ShardStream(job.pool, sorted({*missing, *retried}), compute, encoding, retried)
    callbacks: list[L.Callback] = [ShardWriter(job.folder.scores, job.folder.images)]
    if job.selector.needs_anchors or job.selector.uses_proxy:  # no others have a score that anchors go into
        callbacks.append(OverlapWatch(context.anchors))
    with (
        job.folder.cost_log.stage("score", job.config.selector.shown, job.selector.usage) as cost,
        opened(compute.vision_cache_gib, "score"),
    ):
        cost.resumed = len(missing) < job.shards
        workers = worker_count(compute, stream.records // (compute.devices * compute.num_nodes))
        module = ScoringModule(job.selector, context, stream, cost, workers)
        shard = shards_proxy(compute) and job.selector.uses_proxy
        trainer = make_trainer(compute, job.folder.path, "score", callbacks, shard, inference_mode=False)
        try:
            trainer.predict(module, return_predictions=False)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to report
                module.end_other_ranks()
            with contextlib.suppress(Exception):
                module.tear_down_selector()
            raise
        trainer.strategy.barrier()
