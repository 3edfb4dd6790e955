"""Audits: does a mechanism do what it claims, what does an attacker learn from a run, and what does he see of the data?

Epsilons are upper bounds by proof; what is measured here are lower bounds, by attack.
"""

from fedjax_sim.privacy.audits._bounds import (
    clopper_pearson,
    epsilon_lower_bound,
    one_run_lower_bound,
    two_gaussians_epsilon,
)
from fedjax_sim.privacy.audits._mechanism import MechanismAudit, NoiseTest, audit_mechanism

__all__ = [
    "MechanismAudit",
    "NoiseTest",
    "audit_mechanism",
    "clopper_pearson",
    "epsilon_lower_bound",
    "one_run_lower_bound",
    "two_gaussians_epsilon",
]
