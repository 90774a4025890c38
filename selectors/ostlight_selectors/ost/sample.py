"""``selection: sample``: a random subset in which higher utilities are more likely."""

from __future__ import annotations

import numpy as np

from ostlight.config.budget import Budget
from ostlight.selection.scores import Scores
from ostlight.selection.strata import select_per_stratum
from ostlight_selectors.ost.filter import seeded_uniform


def select_sample(scores: Scores, budget: Budget, temperature: float) -> np.ndarray:
    """Rows drawn without replacement with probability in proportion to ``exp(z_i / temperature)``, ``z_i`` the utility
    over its spread in the pool, or in its stratum (median 0, interquartile range 1.35, as of a standard normal).

    The draw is by Gumbel's top-k (Kool, van Hoof and Welling 2019, arXiv 1903.06059), as QuRating samples by quality
    (Wettig et al. 2024, arXiv 2402.09739). Low temperatures come to the ranking, high ones to a uniform draw.
    """

    def drawn(part: Scores, share: Budget) -> np.ndarray:
        uniform = np.clip(seeded_uniform(part), 1e-18, None)
        keys = standardized(part.score) / temperature - np.log(-np.log(uniform))
        return share.within(part, np.lexsort((part.positions, -keys)))

    return drawn(scores, budget) if budget.stratify_by is None else select_per_stratum(scores, budget, drawn)


def standardized(values: np.ndarray) -> np.ndarray:
    """Median 0 and interquartile range 1.35; standard deviation 1 where half of the values are equal."""
    if not len(values):
        return values
    low, middle, high = np.percentile(values, [25, 50, 75])
    spread = (high - low) / 1.349 or values.std()
    return np.asarray((values - middle) / spread) if spread > 0 else np.zeros_like(values)
