"""Where a generated answer ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ostlight.models.module import MultimodalModel


class AnswerEnd:
    """What ends an answer: the end of a turn as the chat template writes it, and the tokens the model folder names.

    A model that was trained here ends its answers with the template's token, whatever the generation settings of the
    model it began as say.
    """

    def __init__(self, model: MultimodalModel) -> None:
        chat, generation = model.encoder.chat, getattr(model.model, "generation_config", None)
        named = getattr(generation, "eos_token_id", None)
        ids = [named] if isinstance(named, int) else list(named or [])
        trained = chat.end_of_turn_id
        self._tokenizer = model.encoder.tokenizer
        self._ids = list(dict.fromkeys([*([] if trained is None else [trained]), *ids]))
        self._text = chat.end_of_turn.strip() if trained is None else ""
        self._pad_id = model.collator.pad_id

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of ``generate``."""
        options: dict[str, Any] = {"pad_token_id": self._pad_id}
        if self._ids:
            options["eos_token_id"] = self._ids
        if self._text:
            options |= {"stop_strings": [self._text], "tokenizer": self._tokenizer}
        return options

    def read(self, tokens: Sequence[int]) -> tuple[str, bool]:
        """The answer in generated tokens, and whether it was ended; what follows its end is padding."""
        stop = next((k for k, token in enumerate(tokens) if token in self._ids), len(tokens))
        text = str(self._tokenizer.decode(tokens[:stop], skip_special_tokens=True))
        if self._text and self._text in text:
            return text.partition(self._text)[0], True
        return text, stop < len(tokens)
