"""LLaMA-Factory: ``dataset_info.json``, records in its ``sharegpt`` format, and a configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from ostlight.data.sample import IMAGE_PLACEHOLDER, Sample, Turn
from ostlight.sharing.trainers import (
    INSTRUCTIONS,
    RECORDS,
    TrainingPlan,
    UnsuitableError,
    alternating,
    call_of,
    refuse_placeholders,
    refuse_untrained_answers,
    yaml_of,
)

DATASET = "selected"

TEMPLATES = {
    "gemma3": "gemma3",
    "glm4v": "glm4v",
    "internvl": "intern_vl",
    "llama": "llama3",
    "llama4": "llama4",
    "llava": "llava",
    "llava_next": "llava_next",
    "mllama": "mllama",
    "paligemma": "paligemma",
    "qwen2": "qwen",
    "qwen2_5_vl": "qwen2_vl",
    "qwen2_vl": "qwen2_vl",
    "qwen3": "qwen3_nothink",
    "qwen3_5": "qwen3_5_nothink",
    "qwen3_vl": "qwen3_vl_nothink",
}
"""Its names of chat templates, by the ``model_type`` of a model's ``config.json``."""

FREEZE = {
    "vision": "freeze_vision_tower",
    "projector": "freeze_multi_modal_projector",
    "language": "freeze_language_model",
}


class LlamaFactory:
    """Records as turns of ``human``, ``gpt``, ``function_call`` and ``observation``, which must alternate."""

    name: ClassVar[str] = "llama-factory"
    reads_files: ClassVar[bool] = True

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan = plan

    def record(self, sample: Sample) -> dict[str, Any]:
        refuse_placeholders(sample, ("<video>", "<audio>"))
        turns = alternating(sample.turns)
        refuse_untrained_answers(turns)
        system = turns.pop(0).text if turns[0].role in INSTRUCTIONS else ""
        messages: list[dict[str, str]] = []
        for turn in turns:
            who, text = _message(turn)
            if who == "observation" and messages and messages[-1]["from"] == who:
                # As its own converter joins what several functions return.
                messages[-1]["value"] += f"\n</tool_response>\n<tool_response>\n{text}"
            else:
                messages.append({"from": who, "value": text})
        speaks = [message["from"] in ("gpt", "function_call") for message in messages]
        if speaks != [bool(k % 2) for k in range(len(speaks))]:
            raise UnsuitableError("turns that do not alternate")
        if IMAGE_PLACEHOLDER in system:
            raise UnsuitableError("an image in its instructions, where it looks for none")
        tools = [_described(tool["function"]) for tool in sample.tools]
        return {
            "id": sample.id,
            "conversations": messages,
            "system": system,
            "tools": json.dumps(tools, ensure_ascii=False) if tools else "",
        }

    def files(self) -> dict[str, str]:
        columns = {"messages": "conversations", "system": "system", "tools": "tools"}
        columns |= {"images": "images"} if self.plan.has_images else {}
        tags = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
        tags |= {"observation_tag": "observation", "function_tag": "function_call", "system_tag": "system"}
        entry = {"file_name": RECORDS, "formatting": "sharegpt", "columns": columns, "tags": tags}
        info = json.dumps({DATASET: entry}, indent=2)
        return {"dataset_info.json": f"{info}\n", "train.yaml": self._yaml()}

    def _yaml(self) -> str:
        target = self.plan.config.target
        settings: dict[str, Any] = {"model_name_or_path": self.plan.model}
        settings["trust_remote_code"] = target.trust_remote_code
        settings |= {"stage": "sft", "do_train": True, "finetuning_type": "lora" if target.lora else "full"}
        if target.lora:
            settings |= {"lora_rank": target.lora.rank, "lora_alpha": target.lora.alpha, "lora_target": "all"}
        if self.plan.has_images:
            settings |= {setting: part in target.freeze for part, setting in FREEZE.items()}
            # Its own default would make images smaller than the run saw them.
            settings["image_max_pixels"] = target.max_pixels or self.plan.config.pool.limits.image_pixels
        settings |= {"dataset": DATASET, "dataset_dir": self.name, "media_dir": "."}
        comments = [f"Run in the folder above: {' '.join(self.command)}"]
        template = TEMPLATES.get(self.plan.model_type)
        if template is not None:
            settings["template"] = template
        else:
            comments.append("Set `template` to LLaMA-Factory's name for the model's chat template.")
        settings |= {"cutoff_len": target.max_length, "output_dir": f"trained/{self.name}"}
        common = dict(self.plan.common)
        common["disable_gradient_checkpointing"] = not common.pop("gradient_checkpointing")
        lacking = self.plan.not_carried_over
        if target.lora and target.lora.modules != "all-linear":
            lacking.append(f"the adapted modules (target.lora.modules={target.lora.modules}): all linear ones are")
        comments += [f"Not carried over: {sentence}." for sentence in lacking]
        return yaml_of(comments, settings | common)

    @property
    def command(self) -> list[str]:
        return ["llamafactory-cli", "train", f"{self.name}/train.yaml"]

    @property
    def model_argument(self) -> str:
        return "model_name_or_path="


def _described(function: Mapping[str, Any]) -> dict[str, Any]:
    """A function with the fields that LLaMA-Factory fails without."""
    parameters = {"type": "object", "properties": {}} | (function.get("parameters") or {})
    return {"description": ""} | dict(function) | {"parameters": parameters}


def _message(turn: Turn) -> tuple[str, str]:
    if turn.tool_calls:
        if turn.text.strip():
            raise UnsuitableError("text beside a function call")
        return "function_call", json.dumps([call_of(call) for call in turn.tool_calls], ensure_ascii=False)
    return {"user": "human", "assistant": "gpt", "tool": "observation"}[turn.role], turn.text
