"""Audits: does a mechanism do what it claims, what does an attacker learn from a run, and what does he see of the data?

Epsilons are upper bounds by proof; what is measured here are lower bounds, by attack.
"""

from fedjax_sim.privacy.audits._bounds import (
    clopper_pearson,
    epsilon_lower_bound,
    one_run_lower_bound,
    two_gaussians_epsilon,
)
from fedjax_sim.privacy.audits._canaries import Canaries
from fedjax_sim.privacy.audits._canary_audit import CanaryAudit, audit_canaries
from fedjax_sim.privacy.audits._inversion import (
    Inversion,
    invert_gradients,
    invert_linear,
    loss_gradient,
    psnr,
)
from fedjax_sim.privacy.audits._joined import add_canaries
from fedjax_sim.privacy.audits._mechanism import MechanismAudit, audit_mechanism
from fedjax_sim.privacy.audits._membership import (
    example_losses,
    lira,
    logit_confidence,
    loss_threshold,
    number_examples,
    shadow_members,
    train_on,
)
from fedjax_sim.privacy.audits._noise_tests import NoiseTest
from fedjax_sim.privacy.audits._roc import Roc, roc

__all__ = [
    "Canaries",
    "CanaryAudit",
    "Inversion",
    "MechanismAudit",
    "NoiseTest",
    "Roc",
    "add_canaries",
    "audit_canaries",
    "audit_mechanism",
    "clopper_pearson",
    "epsilon_lower_bound",
    "example_losses",
    "invert_gradients",
    "invert_linear",
    "lira",
    "logit_confidence",
    "loss_gradient",
    "loss_threshold",
    "number_examples",
    "one_run_lower_bound",
    "psnr",
    "roc",
    "shadow_members",
    "train_on",
    "two_gaussians_epsilon",
]
