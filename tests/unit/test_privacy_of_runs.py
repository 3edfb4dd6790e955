"""The table ``[privacy]`` and what a run folder says of the privacy that was spent."""

from __future__ import annotations

import json

import pytest

from fedjax_sim import experiment
from fedjax_sim.experiment import ConfigError
from fedjax_sim.privacy import Ledger

SMALL = [
    "data.clients=20",
    "cohort.size=5",
    "model.name=linear",
    "rounds=6",
    "plots=false",
    "evaluation.every=100",
]
PRIVATE = [
    *SMALL,
    'algorithm.aggregate=[{name="clip_by_global_norm", clip_norm=1.0}, {name="mean", over="expected_cohort"}, '
    '{name="gaussian_noise", noise_multiplier=3.0}]',
    "privacy.accountant=rdp",
]
EXAMPLES = [
    *SMALL,
    "algorithm.name=fedavg_dp_sgd",
    "algorithm.client.name=sgd",
    "algorithm.client.learning_rate=0.1",
    "algorithm.clip_norm=1.0",
    "algorithm.noise_multiplier=2.0",
    "algorithm.expected_batch_size=5",
    "local.poisson_rate=0.1",
    "local.max_steps=2",
    "local.batch_size=200",
    "privacy.accountant=rdp",
]


def load(*changes, base=PRIVATE) -> experiment.Experiment:
    return experiment.load(changes=[*base, *changes])


def price(rounds, base=PRIVATE, **options):
    sim = load(base=base).simulation()
    return sim.privacy(rounds, options.pop("delta", 20**-1.1), accountant="rdp", **options).epsilon


def said(outcome, replica=0):
    """As the file has it."""
    summary = json.loads((outcome.folder / "summary.json").read_text())
    return summary, summary["replicas"][replica].get("privacy")


def test_a_private_run_says_what_it_cost(tmp_path):
    summary, (found,) = said(experiment.run(load(), tmp_path / "a"))
    assert found["epsilon"] == pytest.approx(price(6))
    assert (found["unit"], found["neighbour"], found["rounds"]) == ("client", "replace_one", 6)
    assert found["delta"] == pytest.approx(20**-1.1)
    assert Ledger.from_json(found["ledger"]) == load().simulation().ledger(6)
    assert (summary["status"], summary["reason"]) == ("completed", "")


def test_a_run_without_noise_says_nothing(tmp_path):
    _, found = said(experiment.run(load(base=SMALL), tmp_path / "a"))
    assert found is None


def test_a_run_ends_with_its_budget_and_says_so(tmp_path):
    budget = (price(2) + price(3)) / 2
    summary, (found,) = said(experiment.run(load(f"privacy.epsilon={budget}"), tmp_path / "a"))
    assert (summary["rounds"], summary["rounds_asked"], summary["status"]) == (2, 6, "completed")
    assert "the privacy budget, epsilon" in summary["reason"]
    assert summary["stopped"] == "budget"
    assert found["epsilon"] == pytest.approx(price(2))
    assert found["epsilon"] < budget


def test_a_resumed_run_continues_the_ledger(tmp_path):
    """What ran before is in the price; a budget may be raised, and one that is spent ends the run at once."""
    budgets = [(price(n) + price(n + 1)) / 2 for n in (2, 4)]
    experiment.run(load(f"privacy.epsilon={budgets[0]}"), tmp_path / "a")
    (again,) = experiment.resume(tmp_path / "a")
    assert (said(again)[0]["rounds"], again.status) == (2, "completed")
    assert (said(again)[0]["stopped"], again.histories[0].stopped) == ("budget", "budget")
    (further,) = experiment.resume(tmp_path / "a", [f"privacy.epsilon={budgets[1]}"])
    summary, (found,) = said(further)
    assert summary["rounds"] == 4
    assert found["epsilon"] == pytest.approx(price(4))
    with pytest.raises(ConfigError, match="pays for 2 rounds, and 4 are done: raise it"):
        experiment.resume(tmp_path / "a", [f"privacy.epsilon={budgets[0]}"])


def test_a_budget_below_the_first_round_writes_nothing(tmp_path):
    with pytest.raises(
        ConfigError, match=r"privacy\.epsilon is 0\.01, which does not pay for the first round"
    ):
        experiment.run(load("privacy.epsilon=0.01"), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_budget_for_what_has_no_price_writes_nothing(tmp_path):
    with pytest.raises(ConfigError, match="privacy: the chain adds no noise"):
        experiment.run(load("privacy.epsilon=3.0", base=SMALL), tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("privacy.epsilon=-1.0", "privacy: epsilon is -1.0"),
        ("privacy.delta=2.0", "privacy: delta is 2.0"),
        ("privacy.unit=person", "privacy.unit is"),
        ("privacy.noise=1.0", "privacy.noise is no setting"),
    ],
)
def test_the_table_is_checked(tmp_path, change, says):
    with pytest.raises(ConfigError, match=says):
        experiment.run(load(change), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_replicas_of_other_noise_have_prices_of_their_own(tmp_path):
    """Noise is traced, so that all of it trains in one program; the dearest replica decides how far the budget goes."""
    dear = price(2, EXAMPLES, unit="example", delta=1e-5)
    made = load(
        "privacy.unit=example",
        "privacy.delta=1e-5",
        f"privacy.epsilon={dear * 1.0001}",
        "sweep.algorithm.noise_multiplier=[2.0, 4.0]",
        base=EXAMPLES,
    )
    outcome = experiment.run(made, tmp_path / "a")
    summary, (first,) = said(outcome)
    _, (second,) = said(outcome, 1)
    assert summary["rounds"] == 2
    assert first["epsilon"] == pytest.approx(dear)
    assert second["epsilon"] < first["epsilon"]
    assert [found["ledger"][0]["multiplier"] for found in (first, second)] == [2.0, 4.0]


def test_examples_are_priced_with_a_delta_of_their_own(tmp_path):
    made = load("rounds=1", base=EXAMPLES)
    _, (found,) = said(experiment.run(made, tmp_path / "a"))
    assert (found["unit"], found["neighbour"], found["sampling"]) == (
        "example",
        "replace_special",
        ["poisson"],
    )
    assert found["delta"] == pytest.approx(made.federated.train.num_examples**-1.1)


def test_what_has_no_price_is_said(tmp_path):
    made = load("rounds=1", "cohort.replace=true", base=EXAMPLES)
    _, (found,) = said(experiment.run(made, tmp_path / "a"))
    assert found["unit"] == "example"
    assert "drawn with replacement" in found["no_price"]
