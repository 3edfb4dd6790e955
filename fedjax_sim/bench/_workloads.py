"""What is trained in the benchmarks of rounds and of peers: data, model and local work, each under a name.

Arrays are noise of the true shape, drawn from a fixed seed: time does not depend on what the pixels show, and nothing
has to be downloaded. Images are uint8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import optax
from flax import linen as nn

from fedjax_sim import aggregation, algorithms, models, rules, tasks
from fedjax_sim._src.types import Algorithm, Task
from fedjax_sim.data import ClientData, cohorts
from fedjax_sim.data.local_work import LocalWork


@dataclasses.dataclass(frozen=True)
class Workload:
    """One thing to train.

    Attributes:
      name: how it is asked for.
      data: makes the clients; the same ones each time.
      model: makes the flax module.
      layers: the model for programs that know no flax: ``kind`` or ``kind:name`` in sequence, where the name is that of
        the layer's parameters; dropout is left out. Convolutions and pooling have no padding, pooling has its width as
        stride.
      learning_rate: of the clients' SGD; the server's is 1.
      weights: of the mean over a cohort.
      cohort: who takes part.
      local: every client's work.
      rounds: in one repetition.
      lanes: lane counts worth a look on a CPU.
      check_factor: of the learning rate, where programs are compared number by number. Training a deep network at its
        full rate makes float32's small differences large; a convex problem does not, and there a small rate would
        only show who rounds weights and who rounds updates.
      wide: paths of dense weights that most of the parameters are in, for ``rules.factored_sgd``.
    """

    name: str
    data: Callable[[], ClientData]
    model: Callable[[], nn.Module]
    layers: tuple[str, ...]
    learning_rate: float
    weights: Literal["examples", "clients"]
    cohort: cohorts.Cohort
    local: LocalWork
    rounds: int
    lanes: tuple[int, ...] = (1, 2)
    check_factor: float = 0.01
    wide: tuple[str, ...] = ()

    def task(self, dropout: bool = True) -> Task:
        """Classification by the model. Without dropout it trains with the model that evaluation sees.

        Programs that are to be compared number by number cannot share their random bits, so they train without.
        """
        task = tasks.classification(self.model())
        if dropout:
            return task
        return task._replace(
            apply=lambda variables, batch, key, *, train: task.apply(variables, batch, key, train=False)
        )

    def algorithm(
        self,
        dropout: bool = True,
        learning_rate: float | None = None,
        factored_steps: int | None = None,
        **precision: Any,
    ) -> Algorithm:
        """FedAvg with this workload's optimizers and weights.

        Args:
          dropout: as for ``task``.
          learning_rate: the clients', in place of the workload's.
          factored_steps: where given, the wide layers are kept as outer products, of at most so many steps.
          precision: as ``fs.tasks.with_precision`` has it.
        """
        rate = self.learning_rate if learning_rate is None else learning_rate
        mean = aggregation.mean(over=self.weights)
        task = tasks.with_precision(self.task(dropout), **precision)
        if factored_steps is not None:
            rule = rules.factored_sgd(
                task, rate, self.wide, steps=factored_steps, batch_size=self.local.batch_size
            )
            return algorithms.from_rule("fedavg", task, rule, optax.sgd(1.0), mean)
        return algorithms.fedavg(task, optax.sgd(rate), optax.sgd(1.0), mean)


class LeNet(nn.Module):
    """The network of PyTorch's CIFAR-10 tutorial, which BlazeFL's benchmark trains: 62,006 parameters.

    Two 5 x 5 convolutions (6, 16), each pooled by 2, and dense 120, 84 and 10, for ``f32[batch, 32, 32, 3]``.
    """

    @nn.compact
    def __call__(self, x, *, train: bool):
        del train
        for features in (6, 16):
            x = nn.relu(nn.Conv(features, (5, 5), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        for features in (120, 84):
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(10)(x)


# --- data --------------------------------------------------------------------------------------------------


def power_law_clients(clients: int, seed: int = 0) -> ClientData:
    """60 features, 10 classes; sizes follow a power law, from 10 examples to some thousand."""
    generator = np.random.default_rng(seed)
    sizes = np.minimum(10 * (1 + generator.pareto(1.5, clients)), 2000).astype(np.int64)
    return features_of(generator, sizes)


def features_of(generator: np.random.Generator, sizes: np.ndarray) -> ClientData:
    """60 features, 10 classes, for clients of these sizes."""
    total = int(sizes.sum())
    columns = {
        "x": generator.standard_normal((total, 60), np.float32),
        "y": generator.integers(0, 10, total, dtype=np.int32),
    }
    return _grouped(columns, sizes)


def images_of(sizes: np.ndarray, shape: tuple[int, ...], classes: int) -> ClientData:
    """Noise for clients of these sizes."""
    generator = np.random.default_rng(1)
    total = int(sizes.sum())
    columns = {
        "x": generator.integers(0, 256, (total, *shape), dtype=np.uint8),
        "y": generator.integers(0, classes, total, dtype=np.int32),
    }
    return _grouped(columns, sizes)


def characters(clients: int, vocabulary: int = 90, length: int = 80) -> ClientData:
    """Sequences of characters with the next ones as labels, in clients of skewed sizes, 4 to 200 sequences."""
    sizes = skewed(clients, 30, 0.8, 4, 200)
    text = np.random.default_rng(1).integers(0, vocabulary, (int(sizes.sum()), length + 1), dtype=np.int32)
    return _grouped({"x": text[:, :-1].copy(), "y": text[:, 1:].copy()}, sizes)


def skewed(clients: int, median: float, spread: float, least: int, most: int) -> np.ndarray:
    """Log-normal sizes between two bounds, ``int64[clients]``."""
    drawn = np.random.default_rng(0).lognormal(np.log(median), spread, clients)
    return np.clip(drawn, least, most).astype(np.int64)


def mnist() -> ClientData:
    """Clients in number and sizes like the writers of MNIST."""
    sizes = np.clip(np.random.default_rng(0).normal(111, 22, 539), 19, 131).astype(np.int64)
    return images_of(sizes, (28, 28, 1), 10)


def _grouped(columns: dict[str, np.ndarray], sizes: np.ndarray) -> ClientData:
    return ClientData(columns, np.concatenate([[0], np.cumsum(sizes)]), np.arange(len(sizes)))


# --- workloads ---------------------------------------------------------------------------------------------

_DROPOUT_CNN = (
    "conv:Conv_0", "relu", "conv:Conv_1", "relu", "pool:2", "flatten", "dense:Dense_0", "relu", "dense:Dense_1",
)  # fmt: skip


def _of_mnist(
    name: str, layers: tuple[str, ...], rounds: int, lanes: tuple[int, ...], check_factor: float = 0.01
) -> Workload:
    """One of our models, 100 writers a round."""
    return Workload(
        name, mnist, lambda: getattr(models, name)(classes=10), layers, 0.05, "examples", cohorts.uniform(100),
        LocalWork(epochs=1, batch_size=20), rounds, lanes, check_factor,
    )  # fmt: skip


_ALL = (
    _of_mnist("linear", ("flatten", "dense:Dense_0"), 10, (1, 2, 4, 8), 1.0),
    _of_mnist(
        "mlp", ("flatten", "dense:Dense_0", "relu", "dense:Dense_1", "relu", "dense:Dense_2"), 4, (1, 2, 4)
    ),
    _of_mnist("cnn", (), 1, (1, 2)),
    _of_mnist(
        "reference_cnn",
        ("conv:Conv_0", "relu", "pool:2", "flatten", "dense:Dense_0", "relu", "dense:Dense_1"), 1, (1, 2),
    ),
    # FedJAX's EMNIST model, a tenth of the writers.
    Workload(
        "emnist", lambda: images_of(skewed(340, 110, 0.7, 10, 400), (28, 28, 1), 62), models.emnist_cnn, _DROPOUT_CNN,
        0.1, "examples", cohorts.uniform(10), LocalWork(epochs=1, batch_size=20), 5,
    ),
    # LEAF's synthetic set in shape: a model so small that everything else shows.
    Workload(
        "logistic", lambda: power_law_clients(1000), lambda: models.linear(classes=10), ("dense:Dense_0",),
        0.01, "examples", cohorts.uniform(100), LocalWork(epochs=1, batch_size=10), 50, (1, 2, 4, 8), 1.0,
    ),
    # The benchmark of pfl-research (Granqvist et al. 2024, table 2, CIFAR10 IID without privacy).
    Workload(
        "cifar10", lambda: images_of(np.full(1000, 50), (32, 32, 3), 10), models.cifar10_cnn, _DROPOUT_CNN,
        0.1, "clients", cohorts.uniform(50, replace=True), LocalWork(epochs=1, batch_size=10, shuffle=False), 5,
        wide=("Dense_0/kernel",),
    ),
    # The model and shapes of federated Shakespeare (Reddi et al. 2021), roles of skewed sizes.
    Workload(
        "lstm", lambda: characters(100), lambda: models.char_lstm(90),
        ("embed:Embed_0", "lstm:LSTM_0", "lstm:LSTM_1", "dense:Dense_0"),
        0.3, "examples", cohorts.uniform(10), LocalWork(epochs=1, batch_size=4), 5,
    ),
    # FLUTE's FEMNIST experiment (msrflute, experiments/cv_cnn_femnist): its CNN_DropOut is the model of "emnist". Sizes
    # as in federated EMNIST, whose 3400 writers have some 200 examples each.
    Workload(
        "femnist",
        lambda: images_of(
            np.clip(np.random.default_rng(0).normal(198, 77, 3400), 19, 460).astype(np.int64), (28, 28, 1), 62
        ),
        models.emnist_cnn, _DROPOUT_CNN,
        0.1, "examples", cohorts.uniform(10), LocalWork(epochs=1, batch_size=20), 5,
    ),
    # BlazeFL's benchmark: CIFAR-10's 50,000 images over 100 clients who all take part, five epochs a round. Theirs
    # are scaled to -1..1, ours to 0..1; the work is the same.
    Workload(
        "blazefl", lambda: images_of(np.full(100, 500), (32, 32, 3), 10), LeNet,
        ("conv:Conv_0", "relu", "pool:2", "conv:Conv_1", "relu", "pool:2", "flatten", "dense:Dense_0", "relu",
         "dense:Dense_1", "relu", "dense:Dense_2"),
        0.1, "examples", cohorts.all_clients(), LocalWork(epochs=5, batch_size=50), 1,
    ),
    # Small enough to try the machinery of a benchmark; its times say nothing.
    Workload(
        "toy", lambda: images_of(skewed(12, 15, 0.5, 3, 30), (12, 12, 1), 10), lambda: models.reference_cnn(10),
        ("conv:Conv_0", "relu", "pool:2", "flatten", "dense:Dense_0", "relu", "dense:Dense_1"),
        0.1, "examples", cohorts.uniform(4), LocalWork(epochs=2, batch_size=8), 5,
    ),
)  # fmt: skip

WORKLOADS = {workload.name: workload for workload in _ALL}
"""By name."""
