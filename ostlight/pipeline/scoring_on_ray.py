"""Scores a pool on a Ray cluster: a process on every device holds the proxy and what the selector has set up, and
shards are its tasks. Nodes may join and leave; the score files are those of one process."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from ostlight.config.schema import Compute, Config
from ostlight.data.checked_parquet import is_whole
from ostlight.errors import ClusterError, OstlightError, RunChangedError
from ostlight.models.cost import ADDITIVE, StageCost
from ostlight.models.read_ahead import worker_count
from ostlight.pipeline.cost_log import charge
from ostlight.pipeline.inputs import open_pool, read_anchors
from ostlight.pipeline.ray_cluster import Driver, Place, connected, describe_cluster, handle, recorded
from ostlight.pipeline.run_folder import RunFolder
from ostlight.pipeline.score import (
    ScoringJob,
    ShardEngine,
    announce_unsupported,
    make_encoding,
    scoring_context,
    scoring_fingerprints,
)
from ostlight.pipeline.scoring.module import ScoringModule
from ostlight.pipeline.scoring.stream import ShardStream
from ostlight.pipeline.scoring.writer import ShardWriter, part
from ostlight.progress import phase
from ostlight.selection.registry import create
from ostlight.selection.usage import Usage
from ostlight.training.trainer import alone, as_in_predict, quiet_lightning

log = logging.getLogger(__name__)

LOST_TIMES = 3
"""Processes that are lost over the same shards, after which scoring is given up."""

LOOK_S = 2.0
"""How often the driver looks for nodes that have joined."""

SET_UP = -1
"""Stands for a set-up where shards are counted."""

PATIENCE_S = 30.0
"""How often the driver says that it is waiting: for a place on the cluster, or for the first process to be set up."""


@contextmanager
def shard_engine(compute: Compute) -> Iterator[ShardEngine | None]:
    """Yields what scores shards with ``compute.engine``: ``None`` for this process and its ranks.

    A cluster is connected to when the first shards are to be scored, and until the end of the block.
    """
    if compute.engine == "local":
        yield None
        return
    with ExitStack() as stack:
        connections: list[None] = []

        def score(job: ScoringJob, missing: Sequence[int], retried: Mapping[int, Sequence[int]]) -> None:
            if not connections:
                connections.append(stack.enter_context(connected(compute)))
            score_on_ray(job, missing, retried)

        yield score


def score_on_ray(job: ScoringJob, missing: Sequence[int], retried: Mapping[int, Sequence[int]]) -> None:
    """Scores the missing shards and the retried records on the connected cluster, and logs what that cost.

    The first process warms the proxy up and sets up the selector; the others find the proxy and its gradient vectors
    in the run folder.

    Raises:
        ClusterError: a node has other packages or data, does not see the run folder, or processes are lost again and
            again over the same shards.
    """
    with job.folder.cost_log.stage("score", job.config.selector.shown) as cost:
        cost.resumed = len(missing) < job.shards
        fleet = _Fleet(job, sorted({*missing, *retried}), retried)
        try:
            fleet.score()
        except BaseException:
            fleet.stop()
            raise
        else:
            # What a selector says at its end: that requests wait for replies, say.
            if (error := fleet.stop()) is not None:
                raise error
        finally:
            fleet.add_cost(cost)


@dataclass(frozen=True)
class Spec:
    """What a process needs to make its own ``ScoringJob``: that of the driver, without open files."""

    driver: Driver
    config: Config
    folder: RunFolder
    proxy_folder: RunFolder | None
    dependencies: Mapping[str, RunFolder]
    retried: Mapping[int, Sequence[int]]
    shards: Sequence[int]

    def job(self) -> ScoringJob:
        selector = create(self.config.selector.name, self.config.selector.options)
        pool = open_pool(self.config.pool, "pool", selector.needs_answers, self.folder)
        return ScoringJob(self.config, self.folder, pool, selector, self.proxy_folder, self.dependencies)


@dataclass
class Report:
    """What a process sends back from each call.

    Attributes:
        error: that ended the call; ``None`` where there was none.
        records: what was logged.
        cost: of the process up to now.
        usage: of its selector up to now.
        seconds: the process's, in all calls up to now.
        samples: records of this call.
    """

    error: Exception | None = None
    records: list[logging.LogRecord] = field(default_factory=list)
    cost: StageCost = field(default_factory=lambda: StageCost("score"))
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    samples: int = 0


class ShardScorer:
    """Runs as an actor: scores shards with a selector that is set up once.

    Args:
        number: of this process among those that score the pool.
    """

    def __init__(self, spec: Spec, number: int) -> None:
        self._spec, self._number = spec, number
        self._cost, self._seconds = StageCost("score"), 0.0
        self._job: ScoringJob | None = None
        self._module: ScoringModule | None = None

    def set_up(self) -> Report:
        """Warms the proxy up where that was not done, and sets up the selector."""
        with self._reporting() as report:
            self._spec.driver.enter(self._number)
            job = self._job = self._spec.job()
            anchors = read_anchors(job.config)
            _refuse_other_inputs(job, scoring_fingerprints(job.config, job.pool, anchors, job.selector))
            context = scoring_context(job, anchors)
            announce_unsupported(job, context)
            encoding = make_encoding(job, context.proxy.model) if job.selector.uses_proxy else None
            stream = ShardStream(job.pool, list(self._spec.shards), job.config.compute, encoding, self._spec.retried)
            workers = worker_count(job.config.compute, stream.records)
            self._module = ScoringModule(job.selector, context, stream, self._cost, workers)
            self._trainer = self._module.trainer = alone(job.config.compute)
            self._writer = ShardWriter(job.folder.scores, job.folder.images)
            with quiet_lightning(), as_in_predict(job.config.compute, self._module):
                self._module.ensure_set_up()
        return report

    def score(self, shards: Sequence[int]) -> Report:
        """Writes the files of these shards; leaves those alone that another process has finished by now."""
        with self._reporting() as report:
            module, retried = self._module, self._spec.retried
            assert self._job is not None, "set up first"
            assert module is not None, "set up first"
            stream = module.stream
            stream.shards = [s for s in shards if s in retried or not is_whole(part(self._job.folder.scores, s))]
            with quiet_lightning(), as_in_predict(self._job.config.compute, module):
                for k, batch in enumerate(module.predict_dataloader() if stream.shards else ()):
                    batch = batch.to(module.device)
                    rows = module.predict_step(batch, k)
                    self._writer.write_on_batch_end(self._trainer, module, rows, None, batch, k, 0)
        return report

    def tear_down(self) -> Report:
        """Ends the selector's work."""
        with self._reporting() as report:
            if self._module is not None:
                self._module.tear_down_selector()
        return report

    @contextmanager
    def _reporting(self) -> Iterator[Report]:
        """Fills in a report, whatever happens inside."""
        report, start, samples = Report(), time.perf_counter(), self._cost.samples
        with recorded() as report.records:
            try:
                yield report
            except Exception as error:
                if not isinstance(error, OstlightError):
                    error.add_note(f"On node {socket.gethostname()}:\n{traceback.format_exc()}")
                report.error = error
        self._seconds += time.perf_counter() - start
        report.cost, report.seconds, report.samples = self._cost, self._seconds, self._cost.samples - samples
        if self._job is not None:
            report.usage = self._job.selector.usage.copy()


def _refuse_other_inputs(job: ScoringJob, inputs: dict[str, str]) -> None:
    """Raises:
    ClusterError: this node does not see the run folder, or would score from other inputs than the driver.
    """
    node, made_from = socket.gethostname(), job.folder.made_from("scores")
    if made_from is None:
        raise ClusterError(
            f"node {node} finds no manifest in {job.folder.path}; the run folder must lie on storage that every node "
            "of the cluster mounts at the same path"
        )
    try:
        job.folder.claim("scores", inputs)
    except RunChangedError as error:
        raise ClusterError(
            f"node {node} would score from other inputs than the process that drives it: {', '.join(error.changed)}; "
            "all nodes need the same packages, and must see the same files"
        ) from error


class _Actor:
    """An actor and its number."""

    def __init__(self, number: int, handle: Any) -> None:
        self.number, self.handle = number, handle


class _Fleet:
    """The actors of one job, from the driver's side.

    Attributes:
        waiting: groups of shards that no process has; each is the work of one call.
        calls: what runs: the actor, and the shards it scores (none while it is set up).
        idle: actors that are set up and have nothing to do: they stand in for those that are lost.
    """

    def __init__(self, job: ScoringJob, shards: Sequence[int], retried: Mapping[int, Sequence[int]]) -> None:
        import ray

        compute = job.config.compute
        self.place = Place.of(compute)
        # Each process that reads ahead has a shard.
        size = max(1, self.place.workers)
        self.waiting = deque(list(shards[k : k + size]) for k in range(0, len(shards), size))
        self.calls: dict[Any, tuple[_Actor, list[int]]] = {}
        self.idle: list[_Actor] = []
        self.reports: dict[int, Report] = {}
        self._losses: Counter[int] = Counter()
        self._started = 0
        self._is_set_up = False
        config = dataclasses.replace(job.config, compute=self.place.compute(compute))
        spec = Spec(Driver.here(), config, job.folder, job.proxy_folder, job.dependencies, retried, shards)
        self._spec = ray.put(spec)
        self._make = ray.remote(max_restarts=0, max_task_retries=0, **self.place.options)(ShardScorer)
        self._records = sum(len(retried.get(s, range(compute.shard_size))) for s in shards)

    def score(self) -> None:
        """Has every shard scored.

        Raises:
            ClusterError: processes are lost again and again.
            OstlightError: what a process could not do.
        """
        import ray

        said = time.monotonic()
        with phase("scoring", self._records, "samples") as scored:
            while self.waiting or self._is_scoring():
                self._hand_out()
                done, _ = ray.wait(list(self.calls), timeout=LOOK_S) if self.calls else ([], [])
                for call in done:
                    actor, shards = self.calls.pop(call)
                    report = self._receive(call, actor, shards)
                    scored.advance(report.samples if report else 0)
                if not self.calls and self.waiting and not self.idle:
                    time.sleep(LOOK_S)  # every node has left
                if self._is_scoring():
                    said = time.monotonic()
                elif time.monotonic() - said > PATIENCE_S:
                    said = time.monotonic()
                    log.info(
                        f"scoring: waiting for a process with {self.place} to be set up; ray: {describe_cluster()}"
                    )

    def _is_scoring(self) -> bool:
        return any(shards for _, shards in self.calls.values())

    def _receive(self, call: Any, actor: _Actor, shards: list[int]) -> Report | None:
        """Takes the report of a call that has ended; ``None`` where the actor was lost."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            report: Report = ray.get(call)
        except RayTaskError as error:  # what a process cannot report as it is
            raise ClusterError(f"a process of the cluster failed: {error}") from error
        except RayError as error:
            self._lost(actor, shards, error)
            return None
        # Set-ups say the same; what is worth a warning is said whichever process it is.
        handle(report.records, logging.NOTSET if actor.number == 0 else logging.WARNING)
        self.reports[actor.number] = report
        self.idle.append(actor)
        if report.error is not None:
            raise report.error
        if not shards:
            self._is_set_up, self._losses[SET_UP] = True, 0
        return report

    def _lost(self, actor: _Actor, shards: list[int], error: Exception) -> None:
        """Gives the work of a lost actor to others.

        Raises:
            ClusterError: it is not the first one that is lost over it.
        """
        import ray

        ray.kill(actor.handle)  # where it only does not answer: two must not score the same
        what = f"shards {', '.join(map(str, shards))}" if shards else "its set-up"
        key = shards[0] if shards else SET_UP
        self._losses[key] += 1
        reason = " ".join(str(error).split())[:500]
        if self._losses[key] >= LOST_TIMES:
            raise ClusterError(f"{LOST_TIMES} processes were lost over {what}, the last one: {reason}")
        log.warning(f"scoring: a process was lost over {what}, which others take over: {reason}")
        if shards:
            self.waiting.appendleft(shards)

    def _hand_out(self) -> None:
        """Gives idle actors work, and starts actors where the cluster has more places than there are."""
        while self.waiting and self.idle:
            actor, shards = self.idle.pop(0), self.waiting.popleft()
            self.calls[actor.handle.score.remote(shards)] = actor, shards
        if not self._is_set_up:  # the first one warms the proxy up and writes what the others read
            wanted = int(not self.calls)
        else:
            starting = sum(not shards for _, shards in self.calls.values())
            wanted = min(self.place.count() - len(self.calls) - len(self.idle), len(self.waiting) - starting)
        for _ in range(wanted):
            self._start_actor()

    def _start_actor(self) -> None:
        # The first number belongs to the process that writes what all share, so it is taken again if that was lost.
        number = self._started if self._is_set_up else 0
        self._started = number + 1
        actor = _Actor(number, self._make.options(name=None).remote(self._spec, number))
        self.calls[actor.handle.set_up.remote()] = actor, []

    def stop(self) -> Exception | None:
        """Ends all actors: those that have finished their work with a teardown, the others at once.

        Returns:
            The first error of a teardown.
        """
        import ray
        from ray.exceptions import RayError

        ends = {actor.handle.tear_down.remote(): actor for actor in self.idle}
        errors: list[Exception] = []
        for call, actor in ends.items():
            with contextlib.suppress(RayError):
                report = self.reports[actor.number] = ray.get(call, timeout=PATIENCE_S)
                handle(report.records, logging.WARNING)
                errors += [report.error] if report.error is not None else []
        for actor in [*self.idle, *(actor for actor, _ in self.calls.values())]:
            ray.kill(actor.handle)
        return errors[0] if errors else None

    def add_cost(self, cost: StageCost) -> None:
        """Adds what all actors have counted; device time is theirs, not the driver's."""
        for report in self.reports.values():
            for name in ADDITIVE:
                setattr(cost, name, getattr(cost, name) + getattr(report.cost, name))
            charge(cost, report.usage)
            cost.device_s += report.seconds
            for name, value in report.cost.more.items():
                if name == "setup_flops":
                    value += cost.more.get(name, 0.0)
                elif name == "setup_s":  # elapsed: the actors' setups go on side by side
                    value = max(value, cost.more.get(name, 0.0))
                cost.more[name] = value
        cost.more["processes"] = len(self.reports)
