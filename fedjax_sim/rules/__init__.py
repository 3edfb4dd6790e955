"""Client rules: what a client does in a round, as four pure functions (init, begin, step, finish).

``run`` puts one over given batches, for a loop of your own.
"""

from fedjax_sim.rules._clustered import choose_model, train_chosen
from fedjax_sim.rules._dp_sgd import dp_sgd
from fedjax_sim.rules._factored import factored_sgd
from fedjax_sim.rules._fedprox import fedprox
from fedjax_sim.rules._full_gradient import full_gradient
from fedjax_sim.rules._gradients import gradient
from fedjax_sim.rules._local_sgd import Training, local_sgd
from fedjax_sim.rules._mime import MimeBroadcast, mime
from fedjax_sim.rules._run import run, run_with_state
from fedjax_sim.rules._scaffold import ScaffoldBroadcast, ScaffoldUpdate, scaffold
from fedjax_sim.rules._sliced import sliced

__all__ = [
    "MimeBroadcast",
    "ScaffoldBroadcast",
    "ScaffoldUpdate",
    "Training",
    "choose_model",
    "dp_sgd",
    "factored_sgd",
    "fedprox",
    "full_gradient",
    "gradient",
    "local_sgd",
    "mime",
    "run",
    "run_with_state",
    "scaffold",
    "sliced",
    "train_chosen",
]
