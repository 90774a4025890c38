"""Embeddings of all samples, stored once, and what selectors that read them share."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from annotated_types import Interval

from ostlight.config.schema import SelectorChoice
from ostlight.data.atomic import atomic_path
from ostlight.data.sample import Sample
from ostlight.errors import BadRecord, SelectorError, reading_back
from ostlight.models.batch import Batch
from ostlight.models.embedding import kinds_of_tokens, load_folder_embedder, pooled_states_embedder
from ostlight.models.influence_task import make_anchors
from ostlight.pipeline import fingerprint
from ostlight.progress import phase, track
from ostlight.ranks import is_first_rank
from ostlight.selection.context import ScoringContext
from ostlight.selection.pool_columns import PoolColumns
from ostlight.selection.registry import create
from ostlight.selection.scores import Scores, rejections
from ostlight.selection.selector import Selector

log = logging.getLogger("ostlight.selectors.embed")

PROXY = "proxy"
COLUMN = "embedding"
PARTS = "parts"
"""Note: the kind of tokens of each of the equal parts that a vector of the proxy is joined from."""
ANCHORS = "anchor_embeddings.npz"
"""File in the selector's folder: ``[A, D]`` in half precision, in the order of the anchors; NaN where one has none."""

FITTED_PER_CLUSTER = 256
"""Vectors that k-means is fitted to, for each cluster."""
ROWS_AT_ONCE = 16_384


class Embed(Selector):
    """Ranks nothing: stores one embedding a sample for the selectors that read it.

    The column ``embedding`` holds a vector of unit length in half precision, by the proxy (one forward pass a sample)
    or by an embedding model. `rds`, `semdedup`, `facility_location` and `coincide` read it, so another budget, or
    another of them with the same ``embedding`` options, embeds nothing again. The anchors' embeddings are stored
    beside it. Every score is 0.
    """

    uses_proxy: ClassVar[bool] = True

    @dataclass
    class Options:
        """Attributes:
        source: ``proxy``, or a folder or hub name of a sentence-transformers model (of the text alone), a CLIP-like
            one, or an image encoder such as DINOv2 (with ``tokens: image``).
        states: of the proxy's layers: ``hidden`` states, or the outputs of self-``attention`` (as in COINCIDE).
        layers: of the proxy, as shares of its depth; 1 is the last. Several are concatenated.
        tokens: ``all``, ``text`` or ``image`` tokens, or ``both``: image and text tokens pooled apart and concatenated.
        pooling: over tokens: ``mean``, ``weighted_mean`` (weights grow with the position, as in RDS+) or ``last``.
        """

        source: str = PROXY
        states: Literal["hidden", "attention"] = "hidden"
        layers: list[Annotated[float, Interval(gt=0, le=1)]] = field(default_factory=lambda: [0.67])
        tokens: Literal["all", "text", "image", "both"] = "both"
        pooling: Literal["mean", "weighted_mean", "last"] = "mean"

        def problems(self) -> Iterator[str]:
            """No layer."""
            if not self.layers:
                yield "layers is empty; name at least one share of the depth, [0.67] say"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.uses_proxy = self.options.source == PROXY  # type: ignore[misc]

    def fingerprints(self) -> dict[str, str]:
        path = self.options.source
        return {} if path == PROXY else {"source": fingerprint.of_model(path, "selector.options.source")}

    def setup(self, context: ScoringContext) -> None:
        options = self.options
        if self.uses_proxy:
            model = context.proxy.model
            self.embed = pooled_states_embedder(model, options.states, options.layers, options.tokens, options.pooling)
            context.note(PARTS, kinds_of_tokens(options.tokens, model) * len(options.layers))
        else:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self.embed = load_folder_embedder(options.source, options.tokens, options.pooling, device)
        if context.anchors and is_first_rank():
            with atomic_path(context.folder / ANCHORS) as temporary:
                np.savez(temporary, anchors=self._anchor_embeddings(context))  # zip has checksums
        self.logged = False

    def _anchor_embeddings(self, context: ScoringContext) -> np.ndarray:
        if not self.uses_proxy:
            samples = track(context.anchors, "embedding the anchors", unit="samples")
            return np.concatenate([self.embed(Batch([sample])) for sample in samples]).astype(np.float16)
        one_group = ["" for _ in context.anchors]
        anchors = make_anchors(context.proxy.model, context.anchors, one_group, context.proxy.tokens_per_batch)
        batches = track(anchors.batches, "embedding the anchors", unit="batches")
        vectors = np.concatenate([self.embed(batch) for batch in batches]).astype(np.float16)
        return vectors[np.argsort(np.concatenate(anchors.indices))]

    def score(self, batch: Batch) -> dict[str, Any]:
        vectors = self.embed(batch).astype(np.float16)
        if not self.logged:
            self.logged = True
            log.info(f"embeddings: {vectors.shape[1]:,} numbers, {vectors[0].nbytes:,} bytes a sample")
        return {
            "score": np.zeros(len(batch)),
            COLUMN: list(vectors),
            "failure": [self._failure(s, v) for s, v in zip(batch.samples, vectors, strict=True)],
        }

    def _failure(self, sample: Sample, vector: np.ndarray) -> BadRecord | None:
        if np.isfinite(vector).all():
            return None
        if self.options.tokens == "image" and not sample.images:
            return BadRecord("no_image", "there is no image to embed; use tokens=both or text", "images")
        return BadRecord("embedding_not_finite", "the embedding holds NaN or infinity, or is zero")


class EmbeddingSelector(Selector):
    """Scores every sample by the stored embeddings of all: a subclass computes its columns in ``measure``.

    Attributes:
        embedding_defaults: options of ``embed`` that ``options.embedding`` does not give; by the proxy alone.
        folder_defaults: the same where ``embedding.source`` names a model.
    """

    embedding_defaults: ClassVar[Mapping[str, Any]] = {}
    folder_defaults: ClassVar[Mapping[str, Any]] = {}

    @dataclass
    class Options:
        """Attributes:
        embedding: options of ``embed``: ``{source: FOLDER}``, say.
        """

        embedding: dict[str, Any] = field(default_factory=dict)

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        given = self.options.embedding
        defaults = self.embedding_defaults if given.get("source", PROXY) == PROXY else self.folder_defaults
        self.embedding = SelectorChoice("embed", {**defaults, **given})
        # Refuses unknown options before anything is scored.
        create(self.embedding.name, self.embedding.options, "selector.options.embedding")

    def dependencies(self) -> list[SelectorChoice]:
        return [self.embedding]

    def setup(self, context: ScoringContext) -> None:
        table = context.dependencies[self.embedding.shown]
        scores, columns = Scores(table), {"score": np.empty(0)}
        if len(scores):
            # In the order of the ids, so that the pool's order decides nothing.
            scores = scores.take(pa.compute.sort_indices(scores.stored("id")).to_numpy())
            vectors = scores.column(COLUMN).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            columns = self.measure(vectors, scores, context)
        self.columns = PoolColumns(scores.positions, columns, rejections(table))

    @abstractmethod
    def measure(self, vectors: np.ndarray, embedded: Scores, context: ScoringContext) -> dict[str, np.ndarray]:
        """Columns, ``[N]`` or ``[N, K]`` each, ``score`` among them.

        Args:
            vectors: ``[N, D]`` fp32 of unit length, N at least 1; rows are ordered by the samples' ids.
            embedded: the rows of ``embed``'s table they come from, with ids and tags.
            context: as for ``setup``.
        """

    def score(self, batch: Batch) -> dict[str, Any]:
        return self.columns.of(batch.samples)


def anchor_embeddings(context: ScoringContext, label: str) -> np.ndarray:
    """``[A, D]`` fp32 of unit length, in the order of ``context.anchors``.

    Args:
        context: of a selector that depends on ``embed``.
        label: of that dependency.

    Raises:
        SelectorError: the file is missing, or an anchor has no embedding.
    """
    file = context.dependency_folders[label] / ANCHORS
    if not file.exists():
        raise SelectorError(f"{file} is missing; remove the folder {file.parents[1]} to embed again")
    with reading_back(file, f"remove the folder {file.parents[1]} to embed again"):
        with file.open("rb") as opened, np.load(opened) as stored:
            vectors = stored["anchors"].astype(np.float32)
        if len(vectors) != len(context.anchors):
            raise ValueError(f"{len(vectors)} embeddings of {len(context.anchors)} anchors")
    for sample, vector in zip(context.anchors, vectors, strict=True):
        if not np.isfinite(vector).all():
            raise SelectorError(f"anchor {sample.id} has no finite embedding; remove it from the anchors file")
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def spherical_clusters(vectors: np.ndarray, clusters: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The cluster of each vector ``[N]``, and the clusters' centroids ``[K, D]`` of unit length, by k-means.

    Centroids are fitted to a seeded sample of at most 256 vectors a cluster, as faiss does, and scaled to unit length.
    A vector belongs to the centroid with the largest cosine.

    Args:
        vectors: ``[N, D]`` of unit length.
        clusters: K; at most N are made. ``None`` for the square root of N.
        seed: of the sample and of the first centroids.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    count = min(len(vectors), clusters or round(len(vectors) ** 0.5))
    if clusters is not None and count < clusters:
        log.info(f"{count:,} clusters, since there are no more samples")
    random = np.random.default_rng(seed)
    fitted = np.sort(random.permutation(len(vectors))[: FITTED_PER_CLUSTER * count])
    means = KMeans(count, n_init=1, random_state=seed % 2**32)
    with warnings.catch_warnings():
        # Fewer different vectors than clusters: some clusters stay empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        with phase(f"k-means: {count:,} clusters of {len(fitted):,} embeddings"):
            means.fit(vectors[fitted])
    lengths = np.linalg.norm(means.cluster_centers_, axis=1, keepdims=True)
    centroids = (means.cluster_centers_ / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
    parts = range(0, len(vectors), ROWS_AT_ONCE)
    nearest = [(vectors[k : k + ROWS_AT_ONCE] @ centroids.T).argmax(1) for k in track(parts, "nearest clusters")]
    return np.concatenate(nearest), centroids


def rows_by_cluster(clusters: np.ndarray) -> list[np.ndarray]:
    """The rows of each cluster that there is, by its number, ascending.

    Args:
        clusters: ``[N]`` number of each row's cluster.
    """
    order = np.argsort(clusters, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1) if len(order) else []


def nearest_neighbours(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines with each vector's nearest others ``[N, k]``, float64, the largest first, and their rows ``[N, k]``.

    Args:
        vectors: ``[N, D]`` of unit length.
        count: k; at most the N - 1 others there are.
    """
    from sklearn.neighbors import NearestNeighbors

    count = min(count, len(vectors) - 1)
    if not count:
        return np.empty((len(vectors), 0)), np.empty((len(vectors), 0), dtype=np.int64)
    with phase(f"nearest neighbours of {len(vectors):,} embeddings"):
        distances, rows = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(vectors).kneighbors()
    return 1 - distances.astype(np.float64) ** 2 / 2, rows  # of unit vectors
