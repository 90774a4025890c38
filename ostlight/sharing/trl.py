"""TRL: a script that trains on the Parquet files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from ostlight.data.sample import Sample
from ostlight.sharing.trainers import TrainingPlan, refuse_untrained_answers

SCRIPT = "train.py"


class Trl:
    """The data set as it is; ``SFTTrainer`` reads messages with parts, and images beside them."""

    name: ClassVar[str] = "trl"
    reads_files: ClassVar[bool] = False

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan = plan

    def record(self, sample: Sample) -> dict[str, Any]:
        refuse_untrained_answers(sample.turns)
        return {}

    def files(self) -> dict[str, str]:
        target = self.plan.config.target
        settings = {"output_dir": f"trained/{self.name}", "max_length": target.max_length, **self.plan.common}
        settings["assistant_only_loss"] = True
        lora = (
            {"r": target.lora.rank, "lora_alpha": target.lora.alpha, "target_modules": target.lora.modules}
            if target.lora
            else None
        )
        values = {
            "MODEL": self.plan.model,
            "TRUST_REMOTE_CODE": target.trust_remote_code,
            "SETTINGS": settings,
            "LORA": lora,
            "FREEZE": tuple(target.freeze),
        }
        text = (Path(__file__).parent / "templates" / "trl_train.py.txt").read_text(encoding="utf-8")
        sentences = self.plan.not_carried_over
        if target.max_pixels and self.plan.has_images:
            sentences.append(f"the size of images (target.max_pixels={target.max_pixels}): they are as large as stored")
        lacking = "".join(f"Not carried over: {sentence}.\n" for sentence in sentences)
        text = text.replace("@COMMAND@", " ".join(self.command)).replace("@LACKING@", f"\n{lacking}" if lacking else "")
        assigned = "\n".join(f"{name} = {_literal(value)}" for name, value in values.items())
        return {SCRIPT: text.replace("@SETTINGS@", assigned)}

    @property
    def command(self) -> list[str]:
        return ["python", f"{self.name}/{SCRIPT}"]

    @property
    def model_argument(self) -> str:
        return "--model="


def _literal(value: Any) -> str:
    """The value as Python writes it."""
    if not isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    lines = "".join(f"    {json.dumps(name)}: {_literal(one)},\n" for name, one in value.items())
    return f"{{\n{lines}}}"
