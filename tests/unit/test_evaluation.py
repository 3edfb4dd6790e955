"""Evaluation: over all examples and over clients, against numpy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs

SIZES = np.array([5, 0, 1, 9, 3, 0, 7, 2, 4, 6, 8, 3, 2])


def values_task(**metrics) -> fs.Task:
    """A task whose loss of an example is the column ``loss``; the model adds its parameter."""

    def apply(variables, batch, key, *, train):
        assert key is None and train is False
        return batch["loss"] + variables.params, variables.stats

    return fs.Task(lambda key, sample=None: fs.Variables(jnp.zeros(())), apply, lambda o, b: o, metrics)


def column(name):
    return lambda outputs, batch: (batch[name], jnp.ones_like(batch[name]))


@pytest.fixture(scope="module")
def data() -> fs.ClientData:
    generator = np.random.default_rng(0)
    columns = {
        name: generator.uniform(size=SIZES.sum()).astype(np.float32) for name in ("loss", "hit", "miss")
    }
    return fs.ClientData(columns, np.concatenate([[0], np.cumsum(SIZES)]), np.arange(len(SIZES)))


TASK = values_task(accuracy=column("hit"), squared_error=column("miss"))
MODEL = fs.Variables(jnp.float32(0.25))
COLUMN = {"loss": "loss", "accuracy": "hit", "squared_error": "miss"}


def client_means(data, name):
    shift = 0.25 if name == "loss" else 0
    return np.array([np.mean(data.client(c)[COLUMN[name]]) + shift for c in np.flatnonzero(SIZES)])


@pytest.mark.parametrize("batch_size", [1, 7, 50, 512])
def test_over_all_examples_it_is_the_plain_mean(data, batch_size):
    """Whatever the batch size: the padded last batch counts nothing."""
    result = fs.evaluate(TASK, MODEL, data, batch_size=batch_size)
    for name, key in COLUMN.items():
        expected = data.columns[key].mean() + (0.25 if name == "loss" else 0)
        assert result.examples[name] == pytest.approx(expected, rel=1e-5)
    assert result.num_examples == SIZES.sum()


@pytest.mark.parametrize("name", COLUMN)
def test_over_clients_it_is_the_mean_of_client_means(data, name):
    """Empty clients are left out; weighted by examples it is the mean over examples again."""
    result = fs.evaluate(TASK, MODEL, data, batch_size=7)
    means = client_means(data, name)
    assert result.clients[name]["mean"] == pytest.approx(means.mean(), rel=1e-5)
    assert result.clients[name]["weighted"] == pytest.approx(result.examples[name], rel=1e-5)
    np.testing.assert_allclose(result.per_client[name][SIZES > 0], means, rtol=1e-5)
    assert np.isnan(result.per_client[name][SIZES == 0]).all()


@pytest.mark.parametrize(
    ("name", "worst"), [("loss", "high"), ("squared_error", "high"), ("accuracy", "low")]
)
def test_the_worst_decile_is_the_worst_tenth(data, name, worst):
    """Of 11 clients with examples the two worst: high losses and errors, low everything else."""
    ordered = np.sort(client_means(data, name))
    expected = ordered[-2:] if worst == "high" else ordered[:2]
    got = fs.evaluate(TASK, MODEL, data).clients[name]["worst_decile"]
    assert got == pytest.approx(expected.mean(), rel=1e-5)


def test_the_worst_decile_of_few_clients_is_the_worst_one(data):
    result = fs.evaluate(TASK, MODEL, data.select([0, 3]))
    assert result.clients["loss"]["worst_decile"] == pytest.approx(result.per_client["loss"].max())


@pytest.mark.parametrize("name", COLUMN)
def test_fairness_over_clients(data, name):
    """Spread and Jain's index by their formulas; the best tenth lies at the other end than the worst."""
    over, means = fs.evaluate(TASK, MODEL, data).clients[name], client_means(data, name)
    assert over["variance"] == pytest.approx(np.mean((means - means.mean()) ** 2), rel=1e-4)
    assert over["std"] == pytest.approx(np.sqrt(over["variance"]))
    assert over["jain"] == pytest.approx(means.sum() ** 2 / (len(means) * (means**2).sum()), rel=1e-5)
    ordered = np.sort(means)
    best = ordered[-2:] if name == "accuracy" else ordered[:2]
    assert over["best_decile"] == pytest.approx(best.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "jain", "variance"),
    [([1, 1, 1], 1, 0), ([0, 0, 3], 1 / 3, 2), ([0, 0, 0], 1, 0), ([2], 1, 0), ([1, 3], 0.8, 1)],
)
def test_fairness_of_cases_done_by_hand(values, jain, variance):
    columns = {"loss": np.array(values, np.float32)}
    data = fs.ClientData(columns, range(len(values) + 1), range(len(values)))
    over = fs.evaluate(values_task(), fs.Variables(jnp.float32(0.0)), data).clients["loss"]
    assert (over["jain"], over["variance"]) == (pytest.approx(jain), pytest.approx(variance))


def test_a_metric_that_no_client_measured_is_nan_everywhere():
    nothing = values_task(seen=lambda outputs, batch: (outputs * 0, outputs * 0))
    data = fs.ClientData({"loss": np.ones(2, np.float32)}, [0, 1, 2], [0, 1])
    result = fs.evaluate(nothing, MODEL, data)
    assert np.isnan([result.examples["seen"], *result.clients["seen"].values()]).all()
    assert result.clients["seen"].keys() == result.clients["loss"].keys()


def test_an_example_without_weight_leaves_its_client_out():
    """A metric may skip examples (padded positions); a client of such examples alone is NaN."""
    skipping = values_task(seen=lambda outputs, batch: (outputs * batch["w"], batch["w"]))
    data = fs.ClientData(
        {"loss": np.array([1, 2, 9], np.float32), "w": np.array([1, 0, 0], np.float32)}, [0, 2, 3], [0, 1]
    )
    result = fs.evaluate(skipping, fs.Variables(jnp.float32(0.0)), data)
    assert (result.examples["seen"], result.clients["seen"]["mean"]) == (1.0, 1.0)
    assert np.isnan(result.per_client["seen"][1])


def test_padding_may_make_the_model_nan():
    """The rows that fill the last batch are zero; what the model makes of them is not looked at."""
    inverse = values_task()._replace(loss=lambda outputs, batch: 1 / batch["loss"])
    data = fs.ClientData({"loss": np.array([2.0, 4.0], np.float32)}, [0, 2], [0])
    assert fs.evaluate(inverse, MODEL, data).examples["loss"] == pytest.approx(0.375)


def test_data_without_examples_is_refused():
    empty = fs.ClientData({"loss": np.zeros(0, np.float32)}, [0, 0, 0], [0, 1])
    with pytest.raises(ValueError, match="2 clients and no example: there is nothing to evaluate on"):
        fs.evaluate(TASK, MODEL, empty)


def test_the_tasks_check_sees_the_data(data):
    task = fs.tasks.classification(fs.models.linear(classes=3), input="loss", label="y")
    with pytest.raises(ValueError, match="no column 'y'"):
        fs.evaluate(task, MODEL, data)


def test_it_prints_a_table(data):
    text = str(fs.evaluate(TASK, MODEL, data))
    assert "worst decile" in text and "squared_error" in text and f"{SIZES.sum()} examples" in text
