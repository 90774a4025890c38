"""Pools of real images for `ostlight benchmark`: records, defect labels and small base models.

    python benchmarks/prepare_real_pools.py easy_vqa --data FOLDER --out runs/pools/easy_vqa
    python benchmarks/prepare_real_pools.py human_noise --data FOLDER --out runs/pools/human_noise

``easy_vqa`` takes the easy-VQA records in LLaVA's form, draws a pool and puts flaws into it (`_easy_vqa.py`);
``human_noise`` takes photographs with one person's answer each, flawed as they are (`_human_noise.py`). Both write
``pool``, ``anchors``, ``dev``, ``test``, ``base`` and ``truth`` as Parquet, and the model folders ``proxy`` and
``target``, trained from scratch on ``base``. Seeded; minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from _digitmath_models import ModelSize
from _easy_vqa import EasyVqa, cut_easy_vqa
from _human_noise import cut_human_noise
from _real_bases import Recipe, train_bases, vocabulary_of

RECIPES = {
    "easy_vqa": Recipe(
        {
            "proxy": ModelSize(96, 2, 4, 192, vision_hidden=64, vision_layers=2, pixels=64, patch=16),
            "target": ModelSize(128, 3, 4, 256, vision_hidden=96, vision_layers=2, pixels=64, patch=16),
        },
        by="question_type",
        steps=2000,
        lr=1e-3,
    ),
    "human_noise": Recipe(
        {
            "proxy": ModelSize(64, 2, 4, 128, vision_hidden=48, vision_layers=2, pixels=32, patch=4),
            "target": ModelSize(96, 2, 4, 192, vision_hidden=64, vision_layers=2, pixels=32, patch=4),
        },
        by="label",
        steps=200,
        lr=1e-3,
    ),
}
"""What was chosen on the development split: docs/measurements.md and human_noise.md."""


def rates(text: str) -> dict[str, float]:
    """``negation=0.14,empty=0.03``."""
    pairs = [part.split("=") for part in text.split(",") if part]
    return {name: float(rate) for name, rate in pairs}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, required=True, help="folder of the original records")
    parser.add_argument("--out", type=Path, help="default: runs/pools/POOL, where configs/benchmark looks for it")
    parser.add_argument("--seed", type=int, default=0, help="of the draw, the flaws and the base models")
    parser.add_argument("--size", type=int, default=EasyVqa.pool, help="records of the easy_vqa pool")
    parser.add_argument(
        "--defects", type=rates, default=EasyVqa().defects, help="of easy_vqa, as negation=0.14,empty=0.03"
    )
    parser.add_argument("--steps", type=int, help="of the base models' training")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    folder = options.out or Path("runs") / "pools" / options.pool
    if options.pool == "easy_vqa":
        cut = cut_easy_vqa(options.data, EasyVqa(pool=options.size, seed=options.seed, defects=options.defects))
    else:
        cut = cut_human_noise(options.data, options.seed)
    cut.write(folder)
    recipe = RECIPES[options.pool]
    found = train_bases(folder, replace(recipe, steps=options.steps or recipe.steps), vocabulary_of(cut), options.seed)
    print(json.dumps(found, indent=2))
    print(f"written: {folder}")


if __name__ == "__main__":
    main()
