"""Which samples to keep together: objectives of a set, and ways to pick one, from stored slopes and sketches alone."""

from ostlight.selection.set_objective.greedy import exchanged, greedy
from ostlight.selection.set_objective.limits import Limits
from ostlight.selection.set_objective.objective import SetObjective, minibatch_value, plain_value
from ostlight.selection.set_objective.pick import Pick, solve_set
from ostlight.selection.set_objective.quotas import gradient_clusters, quota_limits
from ostlight.selection.set_objective.relaxed import Relaxed, relaxed, rounded

__all__ = [
    "Limits",
    "Pick",
    "Relaxed",
    "SetObjective",
    "exchanged",
    "gradient_clusters",
    "greedy",
    "minibatch_value",
    "plain_value",
    "quota_limits",
    "relaxed",
    "rounded",
    "solve_set",
]
