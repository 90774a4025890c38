"""DigitMath: the built-in pool, arithmetic on images of real handwritten digits, with known defects."""

from ostlight.config.digitmath import DigitMath
from ostlight.digitmath.build import Files, build
from ostlight.digitmath.tasks import final_answer

__all__ = ["DigitMath", "Files", "build", "final_answer"]
