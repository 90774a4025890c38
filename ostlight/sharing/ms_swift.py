"""ms-swift: records as messages with images, and a configuration."""

from __future__ import annotations

import itertools
import json
from typing import Any, ClassVar

from ostlight.data.sample import Sample, Turn
from ostlight.sharing.trainers import (
    INSTRUCTIONS,
    RECORDS,
    TrainingPlan,
    UnsuitableError,
    alternating,
    call_of,
    refuse_placeholders,
    yaml_of,
)

PLACEHOLDERS = ("<video>", "<audio>", "<bbox>", "<ref-object>", "<cot-process>")
FREEZE = {"vision": "freeze_vit", "projector": "freeze_aligner", "language": "freeze_llm"}


class MsSwift:
    """Records as its standard messages; ``loss`` is false where an answer is not trained on."""

    name: ClassVar[str] = "ms-swift"
    reads_files: ClassVar[bool] = True

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan = plan

    def record(self, sample: Sample) -> dict[str, Any]:
        refuse_placeholders(sample, PLACEHOLDERS)
        turns = alternating(sample.turns)
        if any(a.role == b.role and a.role in ("user", "assistant") for a, b in itertools.pairwise(turns)):
            raise UnsuitableError("turns of one speaker in a row, which it would join")
        if next(turn.role for turn in turns if turn.role not in INSTRUCTIONS) != "user":
            raise UnsuitableError("an answer or a result first, before which it would put an empty question")
        row: dict[str, Any] = {"id": sample.id, "messages": [m for turn in turns for m in _messages(turn)]}
        tools = [tool["function"] for tool in sample.tools]
        return row | ({"tools": json.dumps(tools, ensure_ascii=False)} if tools else {})

    def files(self) -> dict[str, str]:
        target = self.plan.config.target
        settings: dict[str, Any] = {"model": self.plan.model, "use_hf": True}
        settings["dataset"] = [f"{self.name}/{RECORDS}"]
        settings["tuner_type"] = "lora" if target.lora else "full"
        if target.lora:
            settings |= {"lora_rank": target.lora.rank, "lora_alpha": target.lora.alpha}
            if target.lora.modules == "all-linear":
                settings["target_modules"] = ["all-linear"]
            else:
                settings["target_regex"] = target.lora.modules
        if self.plan.has_images:
            settings |= {setting: part in target.freeze for part, setting in FREEZE.items()}
            settings |= {"max_pixels": target.max_pixels} if target.max_pixels else {}
        common = dict(self.plan.common)
        settings["torch_dtype"] = "bfloat16" if common.pop("bf16") else "float32"
        # Its own default would leave a longer record out, where the run cut it.
        settings |= {"max_length": target.max_length, "truncation_strategy": "right"}
        settings |= {"output_dir": f"trained/{self.name}"} | common
        comments = [f"Run in the folder above: {' '.join(self.command)}"]
        comments += [f"Not carried over: {lacking}." for lacking in self.plan.not_carried_over]
        return {"train.yaml": yaml_of(comments, settings)}

    @property
    def command(self) -> list[str]:
        return ["swift", "sft", f"{self.name}/train.yaml"]

    @property
    def model_argument(self) -> str:
        return "--model="


def _messages(turn: Turn) -> list[dict[str, Any]]:
    """The turn as messages: what it says, then one for each function it calls."""
    flag = {} if turn.trained or turn.role != "assistant" else {"loss": False}
    role = "system" if turn.role in INSTRUCTIONS else turn.role
    messages: list[dict[str, Any]] = []
    if turn.text or not turn.tool_calls:
        messages.append({"role": role, "content": turn.text, **flag})
    calls = [json.dumps(call_of(call), ensure_ascii=False) for call in turn.tool_calls]
    return [*messages, *({"role": "tool_call", "content": call, **flag} for call in calls)]
