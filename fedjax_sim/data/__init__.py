"""Data of many clients: what it is, where it comes from, and who owns which example.

``ClientData`` holds the examples of all clients as flat columns with offsets. ``load`` and the sources that it
names return a ``Federated``: a training and a test part; so does ``arrays``, for what is in memory. ``parquet``,
``huggingface`` and ``tff`` read files of other packages without those. ``repartition`` deals the examples of a whole set anew by one of
``fs.partitions``, ``redraw`` makes many clients of few, ``split`` divides each client's examples into training and test; ``holdout_clients``, ``holdout_domain`` and
``holdout_public`` keep clients or a domain for evaluation, or examples for a public set. ``feature_noise`` and ``rotated``
make clients' features differ, ``vertical`` splits them between parties. ``augmentations`` change images while a model
trains, ``preprocessing`` also when it is evaluated. ``text`` makes integers of texts,
``decoders`` arrays of columns that hold texts or encoded images.
"""

from fedjax_sim.data import augmentations, decoders, preprocessing, text
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.client_source import ClientSource
from fedjax_sim.data.federated import Federated, holdout_clients, holdout_domain, holdout_public, split
from fedjax_sim.data.formats.flat import arrays, npz
from fedjax_sim.data.formats.huggingface import huggingface
from fedjax_sim.data.formats.image_sets import digits, images, mnist_by_writer
from fedjax_sim.data.formats.leaf import leaf
from fedjax_sim.data.formats.parquet import parquet
from fedjax_sim.data.formats.stored import stored, write
from fedjax_sim.data.formats.tfds import tfds
from fedjax_sim.data.formats.tff import tff
from fedjax_sim.data.glyphs import glyphs
from fedjax_sim.data.presets.cifar import cifar10, cifar100
from fedjax_sim.data.presets.emnist import emnist
from fedjax_sim.data.presets.flamby import heart_disease, tcga_brca
from fedjax_sim.data.presets.leaf_sets import celeba, sent140
from fedjax_sim.data.presets.school import school
from fedjax_sim.data.presets.shakespeare import shakespeare
from fedjax_sim.data.presets.stackoverflow import stackoverflow, stackoverflow_tags
from fedjax_sim.data.redraw import redraw
from fedjax_sim.data.repartition import repartition
from fedjax_sim.data.skews import feature_noise, rotated
from fedjax_sim.data.sources import load
from fedjax_sim.data.synthetic_sets import synthetic
from fedjax_sim.data.vertical import Party, vertical

__all__ = [
    "ClientData",
    "ClientSource",
    "Federated",
    "Party",
    "arrays",
    "augmentations",
    "celeba",
    "cifar10",
    "cifar100",
    "decoders",
    "digits",
    "emnist",
    "feature_noise",
    "glyphs",
    "heart_disease",
    "holdout_clients",
    "holdout_domain",
    "holdout_public",
    "huggingface",
    "images",
    "leaf",
    "load",
    "mnist_by_writer",
    "npz",
    "parquet",
    "preprocessing",
    "redraw",
    "repartition",
    "rotated",
    "school",
    "sent140",
    "shakespeare",
    "split",
    "stackoverflow",
    "stackoverflow_tags",
    "stored",
    "synthetic",
    "tcga_brca",
    "text",
    "tfds",
    "tff",
    "vertical",
    "write",
]
