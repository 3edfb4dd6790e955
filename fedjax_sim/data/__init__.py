"""Data of many clients: what it is, where it comes from, and who owns which example.

``ClientData`` holds the examples of all clients as flat columns with offsets. ``load`` and the sources that it
names return a ``Federated``: a training and a test part. ``repartition`` deals the examples of a whole set anew by one of
``fs.partitions``, ``split`` divides each client's examples into training and test, and ``holdout_clients`` keeps clients for
evaluation alone. ``augmentations`` change images while a model trains.
"""

from fedjax_sim.data import augmentations
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated, holdout_clients, split
from fedjax_sim.data.image_sets import digits, images, mnist_by_writer
from fedjax_sim.data.leaf import leaf
from fedjax_sim.data.repartition import repartition
from fedjax_sim.data.sources import load, npz

__all__ = [
    "ClientData",
    "Federated",
    "augmentations",
    "digits",
    "holdout_clients",
    "images",
    "leaf",
    "load",
    "mnist_by_writer",
    "npz",
    "repartition",
    "split",
]
