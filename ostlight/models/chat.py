"""A model's chat template: from turns to text, and where in that text the answers are."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from ostlight.data.sample import IMAGE_PLACEHOLDER, Turn
from ostlight.errors import BadRecord, ModelError, rejecting

Span = tuple[int, int]
"""First character, and the one behind the last."""

TAG = re.compile(r"</?[\w:|-]{1,40}>|<\|[^|<>\n]{1,40}\|>|\[/?[A-Z_]{2,24}\]|◁/?\w{1,40}▷")
"""What templates look for inside an answer: ``<think>``, ``</think>``, ``[THINK]``, ``<|channel|>``, ..."""

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
PRIVATE = (0xE000, 0xF0000, 0x100000)
"""First characters of Unicode's areas for private use, which no text should hold."""


@dataclass(frozen=True)
class Answer:
    """An answer in the rendered conversation.

    Attributes:
        span: characters the loss is taken on, in the rendered text.
        text: what they must say: the answer as the record has it (where the template drops the reasoning of an earlier
            turn, what comes after it), and the end of the turn.
    """

    span: Span
    text: str


class ChatTemplate:
    """Renders conversations with the chat template of a model.

    Args:
        processor: what ``AutoProcessor`` gave, or a bare tokenizer.
        tokenizer: the processor's, or the same.
        image_token: an image's placeholder as the processor reads it; ``None`` for a text-only model.

    Raises:
        ModelError: there is no chat template, or several without a default.
    """

    def __init__(self, processor: Any, tokenizer: Any, image_token: str | None) -> None:
        self.processor, self.tokenizer, self.image_token = processor, tokenizer, image_token
        self.source = _source(processor, tokenizer)

    def render(self, turns: Sequence[Turn], prompt: bool = False) -> str:
        """The conversation as text.

        Args:
            prompt: also what the template writes before an answer.

        Raises:
            BadRecord: ``template_refused``, with the template's words.
        """
        return self._render([self._message(turn.role, turn.text) for turn in turns], prompt)

    def render_answers(self, turns: Sequence[Turn]) -> tuple[str, list[Answer]]:
        """The conversation as text, and the answers in it: the trained turns, in their order.

        The conversation is rendered a second time with marks at both ends of each answer. Answers are where the marks
        are, and it is proved that the marks changed nothing else: without them the text must be the first one. Inside
        an answer the marks stand between the tags that templates look for, so that a template which drops earlier
        reasoning does so with them too. Of a template with ``{% generation %}`` blocks the blocks are what counts; the
        header of a turn and the line break behind its end are left out if a block holds them.

        Raises:
            BadRecord: ``template_refused``; ``labels_unproved`` where an answer is not found.
        """
        text, covered, blocks = self._locate(turns)
        ends = self._ends
        if not ends and covered and turns[-1].trained:  # no probe could be rendered
            ends = (self._up_to_special(text[covered[-1].span[1] :]),)
        return text, [self._with_end(text, one, blocks, ends) for one in covered]

    def _locate(self, turns: Sequence[Turn]) -> tuple[str, list[Answer], list[Span]]:
        """The conversation as text, its answers without the ends of their turns, and its generation blocks."""
        text = self.render(turns)
        texts = {k: turn.text for k, turn in enumerate(turns) if turn.trained}
        alphabet = _Alphabet.unused_in(text + "".join(texts.values()))
        strips = any(answer != answer.strip() for answer in texts.values())
        for tight in (False, True) if strips else (False,):
            marked = {k: _Marked(answer, alphabet, k, tight) for k, answer in texts.items()}
            rendered, blocks = self._render_blocks(
                [self._message(turn.role, marked[k].text if k in marked else turn.text) for k, turn in enumerate(turns)]
            )
            plain, marks = alphabet.without_marks(rendered)
            if plain == text:
                return (
                    text,
                    _covered(text, marked, marks),
                    [(marks.plain(start), marks.plain(stop)) for start, stop in blocks],
                )
        raise unproved("the chat template writes something else when the ends of the answers are marked")

    def _with_end(self, text: str, covered: Answer, blocks: Sequence[Span], ends: Sequence[str]) -> Answer:
        """The answer with the end of its turn."""
        start, stop = covered.span
        behind = next((end for end in ends if end and text.startswith(end, stop)), "")
        if self._has_blocks:
            block = next((b for b in blocks if b[0] <= start and stop <= b[1]), None)
            if block is None:
                raise unproved("no {% generation %} block of the chat template holds the answer")
            in_block = text[stop : block[1]]
            behind = behind if behind and in_block.startswith(behind) else in_block
        return Answer((start, stop + len(behind)), covered.text + behind)

    @property
    def end_of_turn(self) -> str:
        """What the template writes behind an answer, and a model has to generate too, up to its first special token.

        All but closing white space where that holds no special token; empty where there is nothing.
        """
        return self._ends[0] if self._ends else ""

    @cached_property
    def _ends(self) -> tuple[str, ...]:
        """The end of the last turn, and that of other turns; empty where the template takes no probe."""
        for before in ([], [Turn("system", "Be brief.")]):
            question = [*before, Turn("user", "Say yes.", trained=True)]
            try:
                text, (answer,), _ = self._locate([*before, Turn("user", "Say yes."), Turn("assistant", "yes", True)])
            except BadRecord:
                continue
            last = self._up_to_special(text[answer.span[1] :])
            try:  # some templates end the last answer of a conversation with another token than all other turns
                text, (asked,), _ = self._locate(question)
            except BadRecord:
                return (last,)
            return (last, self._up_to_special(text[asked.span[1] :])) if last else (last,)
        return ()

    @cached_property
    def end_of_turn_id(self) -> int | None:
        """The token that ends an answer; ``None`` where the template writes none."""
        tokens = [token for token in self._specials if self.end_of_turn.endswith(token)]
        return int(self.tokenizer.convert_tokens_to_ids(max(tokens, key=len))) if tokens else None

    def _up_to_special(self, tail: str) -> str:
        found = [(tail.find(token), -len(token)) for token in self._specials if token in tail]
        if not found:
            return tail.rstrip()
        place, length = min(found)
        return tail[: place - length]

    @cached_property
    def _specials(self) -> list[str]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        names = {*self.tokenizer.all_special_tokens, *(token.content for token in added)}
        return sorted(name for name in names if name.strip())

    @cached_property
    def _has_blocks(self) -> bool:
        return GENERATION.search(self.source) is not None

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether contents are lists of parts rather than strings: some templates write Python's form of a list."""
        preferred = self.tokenizer is not self.processor
        for parts in (preferred, not preferred):
            if self._renders(parts):
                return parts
        return preferred

    def _renders(self, parts: bool) -> bool:
        """Whether a question and an answer come out once each, and nothing of Python's form of a list."""
        question, answer = "What is the colour?", "A dark green."
        form = [{"type": "text", "text": text} if parts else text for text in (question, answer)]
        contents = [[part] for part in form] if parts else form
        messages = [{"role": role, "content": c} for role, c in zip(("user", "assistant"), contents, strict=True)]
        try:
            text = self._render(messages, False)
        except BadRecord:
            return False
        return text.count(question) == text.count(answer) == 1 and "'type':" not in text and '"type":' not in text

    def _message(self, role: str, text: str) -> dict[str, Any]:
        if not self._takes_parts:
            return {"role": role, "content": text.replace(IMAGE_PLACEHOLDER, self.image_token or IMAGE_PLACEHOLDER)}
        content: list[dict[str, str]] = []
        for k, part in enumerate(text.split(IMAGE_PLACEHOLDER)):
            if k:
                content.append({"type": "image"})
            if part.strip() or (not content and IMAGE_PLACEHOLDER not in text):
                content.append({"type": "text", "text": part})
        return {"role": role, "content": content}

    def _render(self, messages: list[dict[str, Any]], prompt: bool) -> str:
        if not messages:
            return ""
        with rejecting("template_refused", "the chat template refuses the conversation", "turns"):
            return str(
                self.processor.apply_chat_template(
                    messages, chat_template=self.source, tokenize=False, add_generation_prompt=prompt
                )
            )

    def _render_blocks(self, messages: list[dict[str, Any]]) -> tuple[str, list[Span]]:
        """The conversation as text, and its ``{% generation %}`` blocks."""
        if not self._has_blocks:
            return self._render(messages, False), []
        with rejecting("template_refused", "the chat template refuses the conversation", "turns"):
            texts, blocks = render_jinja_template(
                conversations=[messages],
                chat_template=self.source,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        return str(texts[0]), [(int(start), int(stop)) for start, stop in blocks[0]]


class _Marks:
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


class _Alphabet:
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
    def unused_in(cls, text: str) -> _Alphabet:
        """Marks that cannot be taken for a part of the text."""
        for first in PRIVATE:
            if not re.search(f"[{chr(first)}-{chr(first + 15)}]", text):
                return cls(first)
        raise unproved("the text holds characters of all of Unicode's areas for private use")

    def mark(self, turn: int, chunk: int, is_end: bool) -> str:
        """The mark at one end of a chunk of a turn."""
        edge = self._edges[is_end]
        return edge + "".join(self._digits[c] for c in f"{turn}.{chunk}") + edge

    def without_marks(self, rendered: str) -> tuple[str, _Marks]:
        """The text without marks, and the marks that were in it."""
        pieces, marks, last = [], _Marks(), 0
        values = {character: digit for digit, character in self._digits.items()}
        for match in self._pattern.finditer(rendered):
            pieces.append(rendered[last : match.start()])
            turn, _, chunk = "".join(values[c] for c in match[2]).partition(".")
            marks.add(int(turn), int(chunk), match[1] == self._edges[True], match.span())
            last = match.end()
        return "".join([*pieces, rendered[last:]]), marks


class _Marked:
    """An answer with marks around each chunk of it: what stands between two tags.

    Args:
        plain: the answer.
        turn: number of the turn.
        tight: white space at the ends of the answer is left outside the marks: the template strips it.
    """

    def __init__(self, plain: str, alphabet: _Alphabet, turn: int, tight: bool) -> None:
        self.plain = plain
        self.chunks = list(_chunks(plain, tight))
        pieces, last = [], 0
        for k, (start, stop) in enumerate(self.chunks):
            pieces += [plain[last:start], alphabet.mark(turn, k, False)]
            pieces += [plain[start:stop], alphabet.mark(turn, k, True)]
            last = stop
        self.text = "".join([*pieces, plain[last:]])

    def covered(self, text: str, places: Mapping[tuple[int, bool], int]) -> Answer:
        """Where the answer is in the rendered conversation ``text``, without the end of the turn.

        Raises:
            BadRecord: ``labels_unproved``: a part of it is missing that is no reasoning.
        """
        kept = [k for k in range(len(self.chunks)) if (k, False) in places and (k, True) in places]
        if not kept or kept != list(range(kept[0], len(self.chunks))) or len(places) != 2 * len(kept):
            raise unproved("the chat template leaves out a part of an answer")
        first, last = self.chunks[kept[0]], self.chunks[-1]
        start, stop = places[kept[0], False], places[len(self.chunks) - 1, True]
        before, behind = self.plain[: first[0]], self.plain[last[1] :]
        if kept[0] > 0:
            tag = TAG.findall(before)[-1]
            if "/" not in tag:
                raise unproved(f"the chat template leaves out what an answer says before {tag}")
            return self._spanning(text, start, stop, first[0], behind)
        # Tags at the ends of the answer are not marked.
        if before.strip():
            head = text[:start].rstrip()
            if not head.endswith(before.strip()):
                raise unproved(f"the chat template leaves out {before.strip()} at the beginning of an answer")
            return self._spanning(text, len(head) - len(before.strip()), stop, 0, behind)
        return self._spanning(text, start, stop, first[0], behind)

    def _spanning(self, text: str, start: int, stop: int, begin: int, behind: str) -> Answer:
        """The answer from character ``begin`` of the record's on, with the tags at its end."""
        tags = behind.strip()
        if tags:
            place = len(text) - len(text[stop:].lstrip())
            if not text.startswith(tags, place):
                raise unproved(f"the chat template leaves out {tags} at the end of an answer")
            stop = place + len(tags)
        return Answer((start, stop), self.plain[begin:])


def _covered(text: str, marked: Mapping[int, _Marked], marks: _Marks) -> list[Answer]:
    return [answer.covered(text, marks.places.get(turn, {})) for turn, answer in marked.items()]


def _source(processor: Any, tokenizer: Any) -> str:
    for owner in (processor, tokenizer):
        template = getattr(owner, "chat_template", None)
        if isinstance(template, Mapping):
            if "default" not in template:
                raise ModelError(
                    f"{type(owner).__name__} has the chat templates {', '.join(template) or 'none'} and none called "
                    "default; name one of them default"
                )
            template = template["default"]
        if template:
            return str(template)
    raise ModelError(
        f"{type(processor).__name__} has no chat template, so turns cannot be rendered; "
        "add chat_template.jinja to the model folder"
    )


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
