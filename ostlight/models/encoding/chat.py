"""A model's chat template: from turns to text, and where in that text the answers are."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from ostlight.data.sample import IMAGE_PLACEHOLDER, Turn
from ostlight.errors import BadRecord, ModelError, rejecting
from ostlight.models.encoding.answer_marks import Alphabet, Covered, Marked, Span, unproved

Tools = Sequence[Mapping[str, Any]]
"""Functions the assistant may call, as JSON schemas."""

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
OWN_REASONING = re.compile(r"[.'\"](thinking|reasoning|reasoning_content)\b")
"""Where a template reads a message's reasoning from a field."""


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

    def render(self, turns: Sequence[Turn], prompt: bool = False, tools: Tools = ()) -> str:
        """The conversation as text.

        Args:
            prompt: also what the template writes before an answer.
            tools: functions the assistant may call.

        Raises:
            BadRecord: ``template_refused``, with the template's words; ``no_tools`` where it leaves out function calls,
                or what they returned.
        """
        text = self._render([self._message(turn) for turn in turns], prompt, tools)
        self._check_tools(turns)
        if self._thinks_elsewhere and any(turn.role == "assistant" and "</think>" in turn.text for turn in turns):
            detail = (
                "the chat template takes reasoning in a field of its own and knows no <think>; remove the reasoning, "
            )
            raise BadRecord("template_refused", detail + "or use another model", "turns")
        return text

    def render_answers(self, turns: Sequence[Turn], tools: Tools = ()) -> tuple[str, list[Answer]]:
        """The conversation as text, and the answers in it: the trained turns, in their order.

        The conversation is rendered a second time with marks at both ends of each answer. Answers are where the marks
        are, and it is proved that the marks changed nothing else: without them the text must be the first one. Inside
        an answer the marks stand between the tags that templates look for, so that a template which drops earlier
        reasoning does so with them too. Of a template with ``{% generation %}`` blocks the blocks are what counts; the
        header of a turn and the line break behind its end are left out if a block holds them. An answer that calls
        functions is what the template makes of the calls, up to the end of the turn.

        Raises:
            BadRecord: ``template_refused``; ``labels_unproved`` where an answer is not found.
        """
        text, covered, blocks = self._locate(turns, tools)
        ends = self._ends
        if not ends and covered and turns[-1].trained:  # no probe could be rendered
            ends = (self._up_to_special(text[covered[-1].span[1] :]),)
        answers = [self._with_end(text, one, blocks, ends) for one in covered]
        if answers and turns[-1].trained and not self._has_blocks and not text.endswith(ends, *answers[-1].span):
            raise unproved("the end of the turn does not follow the answer")
        return text, answers

    def _locate(self, turns: Sequence[Turn], tools: Tools = ()) -> tuple[str, list[Covered], list[Span]]:
        """The conversation as text, its answers without the ends of their turns, and its generation blocks."""
        text = self.render(turns, tools=tools)
        trained = {k: turn for k, turn in enumerate(turns) if turn.trained}
        alphabet = Alphabet.unused_in(text + "".join(turn.text for turn in trained.values()))
        strips = any(turn.text != turn.text.strip() for turn in trained.values())
        for tight in (False, True) if strips else (False,):
            marked = {k: Marked(turn, alphabet, k, tight) for k, turn in trained.items()}
            messages = [self._message(marked[k].turn if k in marked else turn) for k, turn in enumerate(turns)]
            rendered, blocks = self._render_blocks(messages, tools)
            plain, marks = alphabet.without_marks(rendered)
            if plain == text:
                found = [one.covered(text, marks.places.get(k, {})) for k, one in marked.items()]
                return text, found, [(marks.plain(start), marks.plain(stop)) for start, stop in blocks]
        raise unproved("the chat template writes something else when the ends of the answers are marked")

    def _check_tools(self, turns: Sequence[Turn]) -> None:
        """Refuses function calls, and what they returned, where the template leaves such turns out."""
        calls, results = any(turn.tool_calls for turn in turns), any(turn.role == "tool" for turn in turns)
        if (calls and not self._writes_tools[0]) or (results and not self._writes_tools[1]):
            what = "function calls" if calls and not self._writes_tools[0] else "what functions return"
            detail = f"the chat template does not write {what}, so a part of the conversation would be lost; use a "
            raise BadRecord("no_tools", detail + "model whose template takes tools", "turns")

    @cached_property
    def _thinks_elsewhere(self) -> bool:
        return "</think>" not in self.source and OWN_REASONING.search(self.source) is not None

    @property
    def takes_tools(self) -> bool:
        """Whether the template writes function calls and what functions return."""
        return all(self._writes_tools)

    @cached_property
    def _writes_tools(self) -> tuple[bool, bool]:
        """Whether the template writes function calls, and what functions return; both where it takes no probe."""
        function = {"name": "zqlook", "arguments": {}}
        call = {"type": "function", "id": "zqcall123", "function": function}
        answer = Turn("tool", "zqresult", name="zqlook", tool_call_id="zqcall123")
        asked = [Turn("user", "Say yes."), Turn("assistant", "", tool_calls=(call,)), answer]
        tool = {"type": "function", "function": {"name": "other", "description": "", "parameters": {}}}
        try:
            text = self._render([self._message(turn) for turn in (*asked, Turn("assistant", "yes"))], False, [tool])
        except BadRecord:
            return True, True
        return "zqlook" in text, "zqresult" in text

    def _with_end(self, text: str, covered: Covered, blocks: Sequence[Span], ends: Sequence[str]) -> Answer:
        """The answer with the end of its turn."""
        if covered.call_end is not None:
            covered = self._with_calls(text, covered, ends)
        start, stop = covered.span
        behind = next((end for end in ends if end and text.startswith(end, stop)), "")
        if not behind and not self._has_blocks and text.startswith(covered.space, stop):
            stop += len(covered.space)
            behind = next((end for end in ends if end and text.startswith(end, stop)), "")
        if self._has_blocks:
            last = bisect_right(blocks, start, key=lambda b: b[0]) - 1
            block = blocks[last] if last >= 0 else (0, 0)
            if stop > block[1]:
                raise unproved("no {% generation %} block of the chat template holds the answer")
            in_block = text[stop : block[1]]
            behind = behind if behind and in_block.startswith(behind) else in_block
        return Answer((start, stop + len(behind)), covered.text + behind)

    def _with_calls(self, text: str, covered: Covered, ends: Sequence[str]) -> Covered:
        """The answer from its text on, or from the header of its turn on if it has none, with all of its calls."""
        assert covered.call_end is not None, "only answers with calls"
        start, last = covered.span[0], covered.call_end
        if not covered.text.strip():
            places = [place + len(h) for h in self._headers if (place := text.rfind(h, 0, covered.span[0])) >= 0]
            if not places:
                raise unproved("the header of a turn with function calls is not found")
            start = max(places)
        stops = [place for end in ends if end.strip() and (place := text.find(end, last)) >= 0]
        if not stops:
            raise unproved("the end of a turn with function calls is not found")
        return Covered((start, min(stops)), text[start : min(stops)])

    @cached_property
    def _headers(self) -> list[str]:
        """What the template may write before an answer, from the end of the question on."""
        question = [Turn("user", "Say yes.")]
        try:
            asked, prompt = self.render(question), self.render(question, prompt=True)
        except BadRecord:
            return []
        return [prompt.removeprefix(asked)] if prompt.startswith(asked) and prompt != asked else []

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

    def _message(self, turn: Turn) -> dict[str, Any]:
        named = {"tool_calls": [dict(call) for call in turn.tool_calls], "name": turn.name}
        others = {k: v for k, v in {**named, "tool_call_id": turn.tool_call_id}.items() if v}
        return {"role": turn.role, "content": self._content(turn.text), **others}

    def _content(self, text: str) -> str | list[dict[str, str]]:
        if not self._takes_parts:
            return text.replace(IMAGE_PLACEHOLDER, self.image_token or IMAGE_PLACEHOLDER)
        content: list[dict[str, str]] = []
        for k, part in enumerate(text.split(IMAGE_PLACEHOLDER)):
            if k:
                content.append({"type": "image"})
            if part.strip() or (not content and IMAGE_PLACEHOLDER not in text):
                content.append({"type": "text", "text": part})
        return content

    def _render(self, messages: list[dict[str, Any]], prompt: bool, tools: Tools = ()) -> str:
        if not messages:
            return ""
        options = {"tools": [dict(tool) for tool in tools]} if tools else {}
        with rejecting("template_refused", "the chat template refuses the conversation", "turns"):
            return str(
                self.processor.apply_chat_template(
                    messages, chat_template=self.source, tokenize=False, add_generation_prompt=prompt, **options
                )
            )

    def _render_blocks(self, messages: list[dict[str, Any]], tools: Tools) -> tuple[str, list[Span]]:
        """The conversation as text, and its ``{% generation %}`` blocks."""
        if not self._has_blocks:
            return self._render(messages, False, tools), []
        with rejecting("template_refused", "the chat template refuses the conversation", "turns"):
            rendered: Any = render_jinja_template(
                conversations=[messages],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self.source,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        (text,), (blocks,) = rendered
        return str(text), [(int(start), int(stop)) for start, stop in blocks]


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
