"""What One-Step-Train costs in the paper's setting: 350k samples, a 1B proxy, an 8B target, 100 anchors, 8 GPUs.

The models are the sizes of InternVL3-1B and Qwen3-VL-8B, written as configurations without weights. Lengths, rate and
memory are assumptions; change them as ``key=value`` on the command line.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from transformers import InternVLConfig, Qwen3VLConfig

import ostlight

ASSUMED = {
    "records": 350_000,
    "anchors": 100,
    "tokens": 800,
    "answer_tokens": 100,
    "image_tokens": 512,
    "record_bytes": 100_000,
    "flops_per_s": 4e14,
    "device_gib": 80.0,
}


def write_models(folder: Path) -> None:
    """``proxy/`` and ``target/``, each a ``config.json``."""
    qwen2 = {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_674, "max_position_embeddings": 32_768,
    }  # fmt: skip
    vision = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": [448, 448], "patch_size": [14, 14], "attention_bias": True, "use_qk_norm": False,
    }  # fmt: skip
    proxy = InternVLConfig(vision_config=vision, text_config=qwen2, image_token_id=151_667, tie_word_embeddings=True)
    proxy.save_pretrained(folder / "proxy")
    qwen3 = {
        "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
    }  # fmt: skip
    tower = {
        "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
        "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 4096,
        "deepstack_visual_indexes": [8, 16, 24],
    }  # fmt: skip
    Qwen3VLConfig(vision_config=tower, text_config=qwen3, tie_word_embeddings=False).save_pretrained(folder / "target")


def main(overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        config = {
            "plan": ASSUMED,
            "proxy": {"path": f"{folder}/proxy"},
            "target": {"path": f"{folder}/target"},
            "selector": {"name": "ost", "options": {"selection": "top", "vector_storage": "bf16"}},
            "budget": {"fraction": 0.2},
            "compute": {"devices": 8, "strategy": "fsdp", "precision": "bf16-mixed"},
        }
        print(ostlight.plan(config, *overrides))


if __name__ == "__main__":
    main(sys.argv[1:])
