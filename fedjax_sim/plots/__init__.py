"""Pictures of run folders and of what audits find. Every function returns a matplotlib ``Figure``; nothing touches pyplot or its state."""

from fedjax_sim.plots._clients import client_results, client_sizes
from fedjax_sim.plots._curves import learning_curves
from fedjax_sim.plots._membership import membership_roc
from fedjax_sim.plots._panels import run_panels
from fedjax_sim.plots._participation import participation
from fedjax_sim.plots._partition import partition
from fedjax_sim.plots._read import RunData, read_run
from fedjax_sim.plots._save import figures, save_all

__all__ = [
    "RunData",
    "client_results",
    "client_sizes",
    "figures",
    "learning_curves",
    "membership_roc",
    "participation",
    "partition",
    "read_run",
    "run_panels",
    "save_all",
]
