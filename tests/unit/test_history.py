"""History: the best and the last evaluation."""

from __future__ import annotations

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim._src.types import Mean
from fedjax_sim.evaluation import higher_is_better, summarise
from fedjax_sim.history import Costs

NAN = float("nan")


def evaluation(**clients) -> fs.Evaluation:
    """Of clients with one example each; ``{metric: one value per client}``."""
    ones = np.ones(len(next(iter(clients.values()))))
    sums = {name: Mean(np.asarray(x, float), ones) for name, x in clients.items()}
    return summarise(sums, ones.astype(int))


def history(evaluations) -> fs.History:
    return fs.History(0, {}, evaluations, Costs())


SERIES = history(
    {
        2: {"eval": evaluation(accuracy=[0.2, 0.4], loss=[3.0, 1.0])},
        4: {"eval": evaluation(accuracy=[0.1, 0.9], loss=[1.0, 1.0])},
        6: {"eval": evaluation(accuracy=[0.3, 0.7], loss=[2.0, 2.0])},
    }
)


def test_the_best_is_the_highest_or_the_lowest_loss_and_the_first_of_equals():
    assert SERIES.best("accuracy") == fs.Score(4, 0.5)
    assert SERIES.best("loss") == (4, 1.0)


def test_the_best_over_clients():
    """The spread is better when low, also of a metric that is better when high."""
    assert SERIES.best("accuracy", over="worst_decile") == (6, 0.3)
    assert SERIES.best("accuracy", over="std") == (2, pytest.approx(0.1))
    assert SERIES.best("accuracy", over="variance").rounds == 2
    assert SERIES.best("loss", over="jain") == (4, 1.0)
    assert SERIES.best("loss", over="worst_decile") == (4, 1.0)


def test_the_last_is_the_last():
    assert SERIES.last("accuracy") == (6, pytest.approx(0.5))
    assert SERIES.last("loss", over="mean") == fs.Score(6, 2.0)


def test_nan_is_never_the_best_but_may_be_the_last():
    series = history({1: {"eval": evaluation(accuracy=[0.5])}, 2: {"eval": evaluation(accuracy=[NAN])}})
    assert series.best("accuracy") == (1, 0.5)
    assert np.isnan(series.last("accuracy").value)
    with pytest.raises(ValueError, match="accuracy over examples is NaN in every evaluation"):
        history({1: {"eval": evaluation(accuracy=[NAN])}}).best("accuracy")


def test_of_several_sets_one_is_named():
    series = history({1: {"test": evaluation(hit=[1.0]), "unseen": evaluation(hit=[0.0])}})
    assert (series.best("hit", on="test").value, series.last("hit", on="unseen").value) == (1.0, 0.0)
    with pytest.raises(ValueError, match="evaluated on test, unseen: say which"):
        series.best("hit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "f1"}, "no metric 'f1'.*'accuracy', 'loss'"),
        ({"metric": "loss", "on": "test"}, "no set 'test'.*'eval'"),
        ({"metric": "loss", "over": "median"}, "no over 'median'.*'examples', 'mean'"),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(KeyError, match=message):
        SERIES.best(**arguments)


def test_without_evaluations_there_is_neither():
    for look in (history({}).best, history({}).last):
        with pytest.raises(ValueError, match="nothing was evaluated in these rounds"):
            look("loss")


def test_what_is_better_is_said_in_one_place():
    low = [
        name
        for name in ("loss", "squared_error", "prox_loss", "accuracy", "hits")
        if not higher_is_better(name)
    ]
    assert low == ["loss", "squared_error", "prox_loss"]
    assert higher_is_better("loss", "jain") and not higher_is_better("accuracy", "std")
