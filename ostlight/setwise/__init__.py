"""Which samples to keep together: objectives of a set, and ways to pick one, from stored slopes and sketches alone."""

from ostlight.setwise.greedy import exchanged, greedy
from ostlight.setwise.limits import Limits
from ostlight.setwise.objective import SetObjective, minibatch_value, plain_value
from ostlight.setwise.pick import Pick, pick_set
from ostlight.setwise.quotas import gradient_clusters, quota_limits
from ostlight.setwise.relaxed import Relaxed, relaxed, rounded
from ostlight.setwise.scale import Choice, Scale, Tried, choose_scale, losses_after

__all__ = [
    "Choice",
    "Limits",
    "Pick",
    "Relaxed",
    "Scale",
    "SetObjective",
    "Tried",
    "choose_scale",
    "exchanged",
    "gradient_clusters",
    "greedy",
    "losses_after",
    "minibatch_value",
    "pick_set",
    "plain_value",
    "quota_limits",
    "relaxed",
    "rounded",
]
