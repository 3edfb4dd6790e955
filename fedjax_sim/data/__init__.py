"""Data of many clients: what it is, where it comes from, and who owns which example.

``ClientData`` holds the examples of all clients as flat columns with offsets. ``load`` and the sources that it
names return a ``Federated``: a training and a test part. ``iid`` and ``dirichlet`` make clients of a set that has
none, ``split`` divides each client's examples into training and test, and ``holdout_clients`` sets whole clients apart.
"""

from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated, holdout_clients, split
from fedjax_sim.data.partitions import Partition, dirichlet, iid
from fedjax_sim.data.sources import digits, load, mnist_by_writer, npz

__all__ = [
    "ClientData",
    "Federated",
    "Partition",
    "digits",
    "dirichlet",
    "holdout_clients",
    "iid",
    "load",
    "mnist_by_writer",
    "npz",
    "split",
]
