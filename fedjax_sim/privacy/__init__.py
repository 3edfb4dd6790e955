"""Differential privacy: the price of a run, read off the chain that adds the noise and the sampler that draws the cohorts.

The noise itself is a layer of a chain, in ``fedjax_sim.aggregation``.
"""

from fedjax_sim.privacy import audits
from fedjax_sim.privacy._accounting import Guarantee, calibrate, epsilon, price, zcdp_budget
from fedjax_sim.privacy._budget import Budget, BudgetSpentError
from fedjax_sim.privacy._gaussian import gaussian_delta, gaussian_sigma, update_noise_multiplier
from fedjax_sim.privacy._importance import Choice, most_important
from fedjax_sim.privacy._ledger import Entry, Ledger, Sampling, ledger_of
from fedjax_sim.privacy._secure_aggregation import secure_aggregation_bits

__all__ = [
    "Budget",
    "BudgetSpentError",
    "Choice",
    "Entry",
    "Guarantee",
    "Ledger",
    "Sampling",
    "audits",
    "calibrate",
    "epsilon",
    "gaussian_delta",
    "gaussian_sigma",
    "ledger_of",
    "most_important",
    "price",
    "secure_aggregation_bits",
    "update_noise_multiplier",
    "zcdp_budget",
]
