"""Choosing what to train from the clients' own data, with its price."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np

from fedjax_sim._src import keys
from fedjax_sim._src.types import Task, Variables
from fedjax_sim.aggregation import chain, clip_by_global_norm, gaussian_noise, mean, run
from fedjax_sim.data.client_source import Clients
from fedjax_sim.data.cohorts import Cohort
from fedjax_sim.privacy._laws import relation_of
from fedjax_sim.privacy._ledger import Ledger, ledger_of
from fedjax_sim.tasks.freeze import fitting, leaf_scores


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen, and what choosing released.

    Attributes:
      predicate: what ``tasks.trainable`` takes: of a parameter's path, whether it is trained.
      scores: by path, noisy means over the expected cohort; free to be shown, as the price covers them.
      ledger: the release; ``choice.ledger + sim.ledger(rounds)`` is that of choice and training together.
    """

    predicate: Callable[[str], bool]
    scores: Mapping[str, float]
    ledger: Ledger


def most_important(
    task: Task,
    variables: Variables,
    data: Clients,
    numbers: int,
    *,
    cohort: Cohort,
    clip_norm: float,
    noise_multiplier: float,
    seed: int | jax.Array,
    batch_size: int = 256,
) -> Choice:
    """Chooses what to train as ``tasks.most_important`` does, by the clients' private data.

    One round: each client of a cohort computes one score for each leaf, its mean squared gradient per number, added up over
    its batches; the vector of scores is clipped, and Gaussian noise covers the sum over clients.

    Guarantees:
      One client moves the sum by at most ``clip_norm``, and nothing else depends on the data. Cohort and noise are not those of
      a simulation with the same seed, so that the two releases compose.

    Args:
      task: whose parameters are nested dicts with string keys.
      variables: the model, which must not depend on the clients' data, or only at a price that is paid.
      data: the clients.
      numbers: the most that may be trained, over all leaves.
      cohort: the sampler of the round.
      clip_norm: of a client's vector of scores, above 0. Far below the scores it makes all clients count alike.
      noise_multiplier: standard deviation of the noise over ``clip_norm``, above 0.
      seed: of cohort and noise; secret, as that of a run.
      batch_size: examples of a gradient.

    Raises:
      ValueError: an argument outside its range; a sampler under which it has no price; not even the smallest leaf fits.

    Example:
      >>> import fedjax_sim as fs, jax
      >>> data = fs.data.load("digits", clients=20, alpha=1.0, seed=0).train
      >>> task = fs.tasks.classification(fs.models.mlp(10, hidden=(16,)), sample_input=(1, 8, 8, 1))
      >>> choice = fs.privacy.most_important(
      ...     task, task.init(jax.random.key(0)), data, 200, cohort=fs.cohorts.all_clients(), clip_norm=1.0,
      ...     noise_multiplier=5.0, seed=0)
      >>> round(fs.privacy.price(choice.ledger, delta=1e-3).epsilon, 2)
      0.45
    """
    private = chain(
        clip_by_global_norm(clip_norm), mean(over="expected_cohort"), gaussian_noise(noise_multiplier)
    )
    ledger = ledger_of(private, cohort, data.num_clients, rounds=1)
    for entry in ledger.entries:
        relation_of(entry.sampling, None)  # what would have no price is not done
    root = keys.fold(keys.root_key(seed), keys.IMPORTANCE)
    words = tuple(int(word) for word in np.asarray(jax.random.key_data(root)))
    drawn = cohort.sample(keys.host_generator(words, keys.COHORT, 0), 0, data.num_clients)
    scores_of = leaf_scores(task, variables, batch_size)
    # A client without examples sends zeros. There is always one more of the kind, for a cohort of nobody.
    sent = [scores_of(data.select([int(client)]).in_memory.columns) for client in drawn]
    sent.append({path: 0.0 for path in scores_of({"nothing": np.zeros(0)})})
    stacked = {path: np.array([each[path] for each in sent], np.float32) for path in sent[-1]}
    sizes = np.append(np.asarray(data.sizes)[np.asarray(drawn, np.int64)], 0)
    expected = cohort.expected(data.num_clients)
    released, _, _ = run(private, stacked, key=root, num_examples=sizes, expected_clients=expected)
    scores = {path: float(score) for path, score in released.items()}
    return Choice(fitting(scores, variables.params, numbers), scores, ledger)
