"""Tasks: a model's ``init`` and ``apply``, its per-example loss, its metrics."""

from fedjax_sim.tasks import losses
from fedjax_sim.tasks.classification import classification
from fedjax_sim.tasks.flax_modules import from_flax
from fedjax_sim.tasks.freeze import trainable
from fedjax_sim.tasks.multi_label import multi_label
from fedjax_sim.tasks.precision import with_precision
from fedjax_sim.tasks.regression import regression

__all__ = [
    "classification",
    "from_flax",
    "losses",
    "multi_label",
    "regression",
    "trainable",
    "with_precision",
]
