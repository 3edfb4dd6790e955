"""Experiments from one file: configuration, run folders, resume and sweeps.

``load`` reads a TOML file into an ``Experiment``, which makes the same data, algorithm and simulation that a script
would write down. ``register`` gives a factory of your own a name that files may use.
"""

from fedjax_sim.experiment._about import about_clients, describe_data, sampled_clients
from fedjax_sim.experiment._experiment import Experiment, load
from fedjax_sim.experiment._folder import RunFolder, new_folder
from fedjax_sim.experiment._forms import ConfigError
from fedjax_sim.experiment._registry import Entry, find, kinds, names, register
from fedjax_sim.experiment._run import Outcome, load_states, resume, run, sweep

__all__ = [
    "ConfigError",
    "Entry",
    "Experiment",
    "Outcome",
    "RunFolder",
    "about_clients",
    "describe_data",
    "find",
    "kinds",
    "load",
    "load_states",
    "names",
    "new_folder",
    "register",
    "resume",
    "run",
    "sampled_clients",
    "sweep",
]
