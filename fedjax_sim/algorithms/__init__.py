"""Algorithms from papers: a client rule, a chain and a server update, composed.

``from_rule`` composes one of your own from a rule that takes ``Variables`` and sends a ``Delta``.
"""

from fedjax_sim.algorithms import server_optimizers
from fedjax_sim.algorithms._fedavg import (
    fedadagrad,
    fedadam,
    fedavg,
    fedavgm,
    fedprox,
    fedsgd,
    fedyogi,
    from_rule,
)
from fedjax_sim.algorithms._fedavg_dp_sgd import fedavg_dp_sgd
from fedjax_sim.algorithms._heterofl import heterofl
from fedjax_sim.algorithms._ifca import ifca
from fedjax_sim.algorithms._mime import mime
from fedjax_sim.algorithms._scaffold import scaffold
from fedjax_sim.algorithms._server import ServerState

__all__ = [
    "ServerState",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedavg_dp_sgd",
    "fedavgm",
    "fedprox",
    "fedsgd",
    "fedyogi",
    "from_rule",
    "heterofl",
    "ifca",
    "mime",
    "scaffold",
    "server_optimizers",
]
