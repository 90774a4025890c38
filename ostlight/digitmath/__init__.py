"""DigitMath: the embedded default pool, multimodal arithmetic over real handwritten digits with known defects."""

from ostlight.config.digitmath import DigitMath
from ostlight.digitmath.answers import final_answer
from ostlight.digitmath.build import Files, build

__all__ = ["DigitMath", "Files", "build", "final_answer"]
