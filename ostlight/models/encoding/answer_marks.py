"""Marks that go through a chat template with an answer, and show where in the rendered text it came out."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ostlight.data.sample import Turn
from ostlight.errors import BadRecord

Span = tuple[int, int]
"""First character, and the one behind the last."""

PRIVATE = (0xE000, 0xF0000, 0x100000)
"""First characters of Unicode's areas for private use, which no text should hold."""

TAG = re.compile(r"</?[\w:|-]{1,40}>|<\|[^|<>\n]{1,40}\|>|\[/?[A-Z_]{2,24}\]|◁/?\w{1,40}▷")
"""What templates look for inside an answer: ``<think>``, ``</think>``, ``[THINK]``, ``<|channel|>``, ..."""


@dataclass(frozen=True)
class Covered:
    """An answer without the end of its turn.

    Attributes:
        span: of its text; where it has none, the place of its first call.
        text: what the span must say.
        call_end: the end of the name of its last function call; ``None`` where it calls none.
        space: white space behind the marks at its end, which the template writes or strips.
    """

    span: Span
    text: str
    call_end: int | None = None
    space: str = ""


class Marks:
    """The marks that came out of a template.

    Attributes:
        places: where each mark is in the text without marks, by turn, chunk and whether it is the chunk's end.
    """

    def __init__(self) -> None:
        self.places: dict[int, dict[tuple[int, bool], int]] = {}
        self._ends = [0]
        self._removed = [0]

    def add(self, turn: int, chunk: int, is_end: bool, span: Span) -> None:
        """One more mark, with its span in the text with marks."""
        of_turn = self.places.setdefault(turn, {})
        if (chunk, is_end) in of_turn:
            raise unproved("the chat template writes an answer twice")
        of_turn[chunk, is_end] = self.plain(span[0])
        self._ends.append(span[1])
        self._removed.append(self._removed[-1] + span[1] - span[0])

    def plain(self, place: int) -> int:
        """A place of the text with marks, in the text without them."""
        return place - self._removed[bisect_right(self._ends, place) - 1]


class Alphabet:
    """Marks out of characters that a text does not hold.

    Args:
        first: of 16 characters: ten digits, a separator, and what begins and ends a mark.
    """

    def __init__(self, first: int) -> None:
        self._digits = {**{str(k): chr(first + k) for k in range(10)}, ".": chr(first + 10)}
        self._edges = {False: chr(first + 11), True: chr(first + 12)}
        edges = "".join(self._edges.values())
        self._pattern = re.compile(f"([{edges}])([{''.join(self._digits.values())}]+)[{edges}]")

    @classmethod
    def unused_in(cls, text: str) -> Alphabet:
        """Marks that cannot be taken for a part of the text."""
        for first in PRIVATE:
            if not re.search(f"[{chr(first)}-{chr(first + 15)}]", text):
                return cls(first)
        raise unproved("the text holds characters of all of Unicode's areas for private use")

    def mark(self, turn: int, chunk: int, is_end: bool) -> str:
        """The mark at one end of a chunk of a turn."""
        edge = self._edges[is_end]
        return edge + "".join(self._digits[c] for c in f"{turn}.{chunk}") + edge

    def without_marks(self, rendered: str) -> tuple[str, Marks]:
        """The text without marks, and the marks that were in it."""
        pieces, marks, last = [], Marks(), 0
        values = {character: digit for digit, character in self._digits.items()}
        for match in self._pattern.finditer(rendered):
            pieces.append(rendered[last : match.start()])
            turn, _, chunk = "".join(values[c] for c in match[2]).partition(".")
            marks.add(int(turn), int(chunk), match[1] == self._edges[True], match.span())
            last = match.end()
        return "".join([*pieces, rendered[last:]]), marks


class Marked:
    """An answer with marks around each chunk of it: what stands between two tags; and around names of functions called.

    Args:
        turn: the answer.
        number: of the turn.
        tight: white space at the ends of the answer is left outside the marks: the template strips it.

    Attributes:
        turn: the answer with marks.
    """

    def __init__(self, turn: Turn, alphabet: Alphabet, number: int, tight: bool) -> None:
        self.plain = turn.text
        self.chunks = list(_chunks(turn.text, tight)) if turn.text.strip() or not turn.tool_calls else []
        self._calls = range(len(self.chunks), len(self.chunks) + len(turn.tool_calls))
        pieces, last = [], 0
        for k, (start, stop) in enumerate(self.chunks):
            pieces += [self.plain[last:start], alphabet.mark(number, k, False)]
            pieces += [self.plain[start:stop], alphabet.mark(number, k, True)]
            last = stop
        calls = []
        for k, call in zip(self._calls, turn.tool_calls, strict=True):
            name = f"{alphabet.mark(number, k, False)}{call['function']['name']}{alphabet.mark(number, k, True)}"
            calls.append({**call, "function": {**call["function"], "name": name}})
        self.turn = replace(turn, text="".join([*pieces, self.plain[last:]]), tool_calls=tuple(calls))

    @property
    def _ends_in_reasoning(self) -> bool:
        """Whether the answer is nothing but reasoning, which templates leave out of earlier turns."""
        return len(self.chunks) == 1 and self.plain[self.chunks[0][1] :].lstrip().startswith("</")

    def covered(self, text: str, places: Mapping[tuple[int, bool], int]) -> Covered:
        """Where the answer is in the rendered conversation ``text``, without the end of the turn.

        Raises:
            BadRecord: ``labels_unproved``: a part of it is missing that is no reasoning.
        """
        calls = [places.get((k, True)) for k in self._calls]
        if None in calls:
            raise unproved("the chat template leaves out a function call of an answer")
        call_end = calls[-1] if calls else None
        if not self.chunks:
            return Covered((places[0, False], places[0, False]), "", call_end)
        kept = [k for k in range(len(self.chunks)) if (k, False) in places and (k, True) in places]
        if not kept and calls and self._ends_in_reasoning and len(places) == 2 * len(calls):
            begin = places[self._calls[0], False]
            return Covered((begin, begin), "", call_end)
        marks = 2 * (len(kept) + len(calls))
        if not kept or kept != list(range(kept[0], len(self.chunks))) or len(places) != marks:
            raise unproved("the chat template leaves out a part of an answer")
        first, last = self.chunks[kept[0]], self.chunks[-1]
        start, stop = places[kept[0], False], places[len(self.chunks) - 1, True]
        before, behind = self.plain[: first[0]], self.plain[last[1] :]
        begin = first[0]
        if kept[0] > 0:
            tag = TAG.findall(before)[-1]
            if "/" not in tag:
                raise unproved(f"the chat template leaves out what an answer says before {tag}")
        elif before.strip():  # tags at the ends of the answer are not marked
            head = text[:start].rstrip()
            if not head.endswith(before.strip()):
                raise unproved(f"the chat template leaves out {before.strip()} at the beginning of an answer")
            start, begin = len(head) - len(before.strip()), 0
        if tags := behind.strip():
            place = len(text) - len(text[stop:].lstrip())
            if not text.startswith(tags, place):
                raise unproved(f"the chat template leaves out {tags} at the end of an answer")
            stop = place + len(tags)
        return Covered((start, stop), self.plain[begin:], call_end, behind[len(behind.rstrip()) :])


def _chunks(text: str, tight: bool) -> Iterator[Span]:
    """What stands between the tags of a text, and is not white space alone; the text itself if that is nothing."""
    edges = [0, *(place for tag in TAG.finditer(text) for place in tag.span()), len(text)]
    found = False
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        inside = text[start:stop]
        if not inside.strip():
            continue
        found = True
        # At tags, templates strip white space; at the ends of an answer, some do.
        strips_left, strips_right = tight or start > 0, tight or stop < len(text)
        yield (
            start + (len(inside) - len(inside.lstrip()) if strips_left else 0),
            stop - (len(inside) - len(inside.rstrip()) if strips_right else 0),
        )
    if not found:
        yield len(text) - len(text.lstrip()), len(text.rstrip())


def unproved(why: str) -> BadRecord:
    """The error for a record whose labels cannot be proved to be its answers."""
    return BadRecord("labels_unproved", f"{why}, so what is trained on cannot be proved to be the answer", "turns")
