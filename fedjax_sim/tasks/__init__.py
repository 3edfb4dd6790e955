"""Tasks: a model's ``init`` and ``apply``, its per-example loss, its metrics."""

from fedjax_sim.tasks import losses
from fedjax_sim.tasks.classification import classification
from fedjax_sim.tasks.flax_modules import from_flax
from fedjax_sim.tasks.freeze import merge_trainable, most_important, trainable
from fedjax_sim.tasks.lora import Adapters, lora, merge_lora
from fedjax_sim.tasks.multi_label import multi_label
from fedjax_sim.tasks.precision import with_precision
from fedjax_sim.tasks.regression import regression
from fedjax_sim.tasks.weights import load_weights, pretrained, save_weights

__all__ = [
    "Adapters",
    "classification",
    "from_flax",
    "load_weights",
    "lora",
    "losses",
    "merge_lora",
    "merge_trainable",
    "most_important",
    "multi_label",
    "pretrained",
    "regression",
    "save_weights",
    "trainable",
    "with_precision",
]
