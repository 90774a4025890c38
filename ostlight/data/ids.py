"""Which records share a name, found with 9 bytes a record."""

from __future__ import annotations

import numpy as np

from ostlight.data.formats.source import GIVEN, UNNAMED


class Names:
    """Names of unnamed records, and which given ids were seen before.

    Args:
        keys: ``uint64 [records]``, 64-bit hash of the given id or of the content.
        kinds: ``uint8 [records]``, ``GIVEN``, ``UNNAMED`` or ``UNREADABLE``.
    """

    def __init__(self, keys: np.ndarray, kinds: np.ndarray) -> None:
        self._keys, self._kinds = keys, kinds
        self._later_given, self._first_given = _repeats(keys, np.flatnonzero(kinds == GIVEN))[:2]
        self._later_unnamed, _, self._rank = _repeats(keys, np.flatnonzero(kinds == UNNAMED))

    def __len__(self) -> int:
        return len(self._keys)

    def first_with_same_id(self, i: int) -> int | None:
        """Position of an earlier record with the id record ``i`` was given; ``None`` where there is none."""
        k = _index_of(self._later_given, i)
        return None if k is None else int(self._first_given[k])

    def drawn(self, count: int, seed: int) -> np.ndarray:
        """Positions of ``count`` records at random, or of all; they hang on the names and the seed alone.

        The same records in another order give the same draw, and the first of a longer draw are those of a shorter one.
        """
        tickets = _mixed(self._keys ^ _mixed(np.array([seed % 2**64], np.uint64)))
        return np.argsort(tickets, kind="stable")[:count]

    def content_name(self, i: int) -> str:
        """Name of a record without an id: a hash of its content, then ``-2``, ``-3`` where the same comes again."""
        k = _index_of(self._later_unnamed, i)
        return f"{int(self._keys[i]):016x}" + ("" if k is None else f"-{self._rank[k]}")


def _mixed(values: np.ndarray) -> np.ndarray:
    """A permutation of the 64-bit numbers that looks random: SplitMix64 (Steele, Lea and Flood 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _repeats(keys: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ascending positions whose key came before, the first position with that key, and which repeat it is (2, ...)."""
    of = keys[positions]
    order = np.argsort(of, kind="stable")
    ordered = of[order]
    new = np.ones(len(ordered), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    group_begin = np.maximum.accumulate(np.where(new, np.arange(len(ordered)), 0)) if len(ordered) else order
    repeat = np.flatnonzero(~new)
    later, first = positions[order[repeat]], positions[order[group_begin[repeat]]]
    rank = repeat - group_begin[repeat] + 1
    ascending = np.argsort(later)
    return later[ascending], first[ascending], rank[ascending]


def _index_of(ascending: np.ndarray, value: int) -> int | None:
    k = int(np.searchsorted(ascending, value))
    return k if k < len(ascending) and ascending[k] == value else None
