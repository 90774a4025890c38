"""The objective of a set of samples and its solver, from stored alignments and curvature coordinates alone."""

from ostlight.selection.set_objective.constraints import Constraints
from ostlight.selection.set_objective.greedy import improve_by_exchange, solve_greedily
from ostlight.selection.set_objective.objective import SetObjective, minibatch_value
from ostlight.selection.set_objective.quotas import gradient_clusters, stratified_constraints
from ostlight.selection.set_objective.relaxation import RelaxedSolution, round_relaxation, solve_relaxation
from ostlight.selection.set_objective.solve import SetSolution, solve_set

__all__ = [
    "Constraints",
    "RelaxedSolution",
    "SetObjective",
    "SetSolution",
    "gradient_clusters",
    "improve_by_exchange",
    "minibatch_value",
    "round_relaxation",
    "solve_greedily",
    "solve_relaxation",
    "solve_set",
    "stratified_constraints",
]
