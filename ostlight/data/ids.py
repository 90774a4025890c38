"""Ids of the records of a pool, found with 9 bytes a record."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ostlight.data.formats.source import HAS_ID, NO_ID, id_hash


class RecordIds:
    """Finds ids that occur twice, and names the records without an id.

    Args:
        hashes: ``uint64 [records]``, of the record's own id or of its content.
        kinds: ``uint8 [records]``, ``HAS_ID``, ``NO_ID`` or ``UNREADABLE``.
    """

    def __init__(self, hashes: np.ndarray, kinds: np.ndarray) -> None:
        self._hashes = hashes
        self._id_positions = np.flatnonzero(kinds == HAS_ID)
        self._repeats_of_ids = _repeats(hashes, self._id_positions)
        self._repeats_of_content = _repeats(hashes, np.flatnonzero(kinds == NO_ID))

    def first_with_same_id(self, i: int) -> int | None:
        """Position of the first record with the same id as record ``i``; ``None`` where ``i`` is the first."""
        first, _ = self._repeats_of_ids.get(i, (None, 0))
        return first

    @cached_property
    def _first_of_repeated(self) -> set[int]:
        return {first for first, _ in self._repeats_of_ids.values()}

    @property
    def shared(self) -> tuple[int, int]:
        """Number of ids that several records have, and of the records that have them."""
        ids = len(self._first_of_repeated)
        return ids, ids + len(self._repeats_of_ids)

    def shares_id(self, i: int) -> bool:
        """Whether another record has the same id as record ``i``."""
        return i in self._repeats_of_ids or i in self._first_of_repeated

    def unique_id(self, i: int, id: str) -> str:
        """The id of record ``i``, which is ``id`` in its file: with ``#2``, ``#3``, ... where others had it before."""
        _, number = self._repeats_of_ids.get(i, (i, 1))
        if number == 1:
            return id
        unique = f"{id}#{number}"
        while id_hash(unique) in self._hashes_of_ids:  # another record is called so in its file
            unique += "'"
        return unique

    @cached_property
    def _hashes_of_ids(self) -> set[int]:
        return set(self._hashes[self._id_positions].tolist()) if self._repeats_of_ids else set()

    def content_id(self, i: int) -> str:
        """Id of a record without one: a hash of its content, with ``-2``, ``-3``, ... for the same content again."""
        _, number = self._repeats_of_content.get(i, (0, 1))
        return f"{int(self._hashes[i]):016x}" + (f"-{number}" if number > 1 else "")

    def random_positions(self, count: int, seed: int) -> np.ndarray:
        """Positions of ``count`` random records, or of all; see ``Pool.random_positions``."""
        return np.argsort(self._random_numbers(seed), kind="stable")[:count]

    def random_share(self, share: float, seed: int) -> np.ndarray:
        """Positions of a random share of the records; see ``Pool.random_share``."""
        numbers = self._random_numbers(seed)
        drawn = len(numbers) if share >= 1 else int((numbers < np.uint64(int(share * 2**64))).sum())
        return np.argsort(numbers, kind="stable")[:drawn]

    def _random_numbers(self, seed: int) -> np.ndarray:
        """``uint64 [records]``: a number for each record that depends on its name and the seed alone."""
        hashes = self._hashes.copy()
        for i, (_, number) in self._repeats_of_ids.items():  # or records of one id would be drawn together
            hashes[i] ^= _mixed(np.array([number], np.uint64))[0]
        return _mixed(hashes ^ _mixed(np.array([seed % 2**64], np.uint64)))


def _mixed(values: np.ndarray) -> np.ndarray:
    """A permutation of the 64-bit numbers that looks random: SplitMix64 (Steele, Lea and Flood 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _repeats(hashes: np.ndarray, positions: np.ndarray) -> dict[int, tuple[int, int]]:
    """Positions whose hash occurred before, with the first position of that hash and which repeat it is (2, 3, ...)."""
    order = np.argsort(hashes[positions], kind="stable")
    ordered, positions = hashes[positions][order], positions[order]
    starts = np.searchsorted(ordered, ordered)
    repeats = np.flatnonzero(starts < np.arange(len(ordered)))
    numbers = repeats - starts[repeats] + 1
    firsts = zip(positions[starts[repeats]].tolist(), numbers.tolist(), strict=True)
    return dict(zip(positions[repeats].tolist(), firsts, strict=True))
