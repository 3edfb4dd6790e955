"""``fedjax-sim privacy``, and what a private run shows at its end."""

from __future__ import annotations

import json

import pytest
from e2e.command_line import invoke

from fedjax_sim.privacy import Ledger

pytestmark = pytest.mark.usefixtures("own_folder")

POISSON = ["privacy", "--rate", "0.01", "--rounds", "1000", "--delta", "1e-5"]


def answers(*arguments: str) -> dict[str, dict]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return {answer["accountant"]: answer for answer in json.loads(result.stdout)}


def test_both_accountants_say_what_their_epsilon_is_for():
    """The golden case of the issue."""
    result = invoke(*POISSON, "--noise", "1.0")
    assert result.exit_code == 0, result.stderr
    pld, rdp, end = result.stdout.splitlines()
    assert pld.split()[:3] == ["PLD", "epsilon", "1.8282"]
    assert rdp.split()[:3] == ["RDP", "epsilon", "2.1014"]
    for line in (pld, rdp):
        assert "add_or_remove_one, poisson sampling, which amplifies" in line
    assert "1,000 rounds at delta 1e-05" in end


def test_calibration_finds_the_least_noise():
    """Golden: epsilon 2 at delta 1e-6, rate 0.001, 1500 rounds."""
    found = answers("privacy", "--rate", "0.001", "--rounds", "1500", "--delta", "1e-6", "--epsilon", "2")
    assert found["pld"]["noise_multiplier"] == pytest.approx(0.616145, rel=1e-4)
    assert found["rdp"]["noise_multiplier"] == pytest.approx(0.713777, rel=1e-4)
    assert found["rdp"]["epsilon"] <= 2


def test_without_replacement_and_cut_cohorts_are_known_to_one():
    common = ["--population", "60000", "--rounds", "1000", "--delta", "1e-5"]
    fixed = answers("privacy", "--cohort", "600", *common, "--noise", "2.0")
    assert fixed["rdp"]["epsilon"] == pytest.approx(3.576111, rel=1e-4)
    assert fixed["rdp"]["neighbour"] == "replace_one"
    assert "'rdp' alone" in fixed["pld"]["no_price"]
    cut = answers("privacy", "--rate", "0.01", "--cap", "700", *common, "--noise", "1.0")
    assert cut["pld"]["epsilon"] == pytest.approx(1.879227, rel=1e-4)
    assert cut["pld"]["neighbour"] == "replace_special"
    assert Ledger.from_json(cut["pld"]["ledger"]).entries[0].sampling.size == 700
    assert "'pld' alone" in cut["rdp"]["no_price"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*POISSON], "give one of --noise, for its epsilon, and --epsilon"),
        ([*POISSON, "--noise", "1", "--epsilon", "1"], "give one of --noise"),
        ([*POISSON, "--noise", "1", "--cohort", "5"], "give one of --rate"),
        (["privacy", "--rounds", "1", "--delta", "0.1", "--noise", "1"], "give one of --rate"),
        (["privacy", "--cohort", "5", "--rounds", "1", "--delta", "0.1", "--noise", "1"], "--cohort needs --population"),
        ([*POISSON, "--noise", "1", "--cap", "5"], "--cap needs --population"),
        ([*POISSON, "--noise", "0"], "--noise is 0, expected a number above 0"),
        (["privacy", "--noise", "1", "--rate", "0.1"], "give --rounds and --delta, or a TOML file"),
        (["privacy", "nowhere.toml"], "there is no file nowhere.toml"),
        ([*POISSON, "--noise", "1", "--neighbour", "sister"], "neighbour is 'sister'"),
        (["privacy", "--rate", "2", "--rounds", "1", "--delta", "0.1", "--noise", "1"], "participation rate is 2.0"),
        (["privacy", "--rate", "1", "--rounds", "1", "--delta", "1.5", "--noise", "1"], "delta is 1.5"),
        (
            ["privacy", "--cohort", "9", "--population", "5", "--rounds", "1", "--delta", "0.1", "--noise", "1"],
            "cohort",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_priced_is_refused(arguments, says):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not result.stdout


EXPERIMENT = """
rounds = 6
plots = false
data.clients = 20
cohort.size = 5
model = "linear"
privacy = { accountant = "rdp", delta = 0.001, epsilon = 1e9 }
[algorithm]
aggregate = [
  { name = "clip_by_global_norm", clip_norm = 1.0 },
  { name = "mean", over = "expected_cohort" },
  { name = "gaussian_noise", noise_multiplier = 3.0 },
]
"""


def test_an_experiment_costs_what_its_run_will_say(tmp_path):
    (tmp_path / "it.toml").write_text(EXPERIMENT)
    (before,) = json.loads(invoke("privacy", "it.toml", "--json").stdout)
    assert invoke("run", "it.toml", "--out", "a", "-q").exit_code == 0
    (after,) = json.loads((tmp_path / "a" / "summary.json").read_text())["replicas"][0]["privacy"]
    assert before.pop("rounds_paid") == 6
    assert before == after
    shown = invoke("privacy", "a", "--rounds", "9", "--delta", "0.1").stdout
    assert "9 rounds were asked for." in shown and "delta 0.1 is too large for 20 clients" in shown
    assert f"{after['epsilon']:.3g}" in invoke("privacy", "a").stdout
    assert "leave --noise out" in invoke("privacy", "a", "--noise", "1").stderr
    plain = invoke("privacy", "it.toml", "--rounds", "2")
    assert plain.exit_code == 0 and "6" not in plain.stdout.split("rounds are within")[0].split()


def test_the_price_of_a_run_that_its_budget_ends_is_that_of_the_rounds_it_pays_for(tmp_path):
    (tmp_path / "it.toml").write_text(EXPERIMENT)
    (three,) = json.loads(invoke("privacy", "it.toml", "--rounds", "3", "--json").stdout)
    (tmp_path / "it.toml").write_text(EXPERIMENT.replace("1e9", repr(three["epsilon"])))
    (found,) = json.loads(invoke("privacy", "it.toml", "--json").stdout)
    assert found["rounds_paid"] == 3 and found["epsilon"] == three["epsilon"]


def test_a_run_that_cannot_begin_shows_no_headline(tmp_path):
    (tmp_path / "it.toml").write_text(EXPERIMENT.replace("1e9", "0.01"))
    result = invoke("run", "it.toml", "--out", "a")
    assert result.exit_code == 2 and "does not pay for the first round" in result.stderr
    assert not result.stdout


def test_what_adds_no_noise_has_no_price(tmp_path):
    (tmp_path / "it.toml").write_text("data.clients = 20")
    assert "nothing in it adds noise" in invoke("privacy", "it.toml").stderr


@pytest.mark.parametrize(
    ("given", "says"),
    [("--noise", "the smaller epsilon holds"), ("--epsilon", "the smaller noise is enough")],
)
def test_what_of_two_answers_holds_is_said(given, says):
    assert says in invoke("privacy", "--rate", "1", "--rounds", "1", "--delta", "1e-5", given, "2").stdout


def test_a_delta_that_promises_nothing_is_remarked():
    common = ["privacy", "--rate", "0.1", "--population", "50", "--rounds", "1", "--noise", "1"]
    assert "delta 0.5 is too large for 50 clients" in invoke(*common, "--delta", "0.5").stdout
    assert "delta 0.015 is large" in invoke(*common, "--delta", "0.015").stdout
    assert "too large" not in invoke(*common, "--delta", "1e-4").stdout


# --- a run ---

PRIVATE = [
    "data.clients=20", "cohort.size=5", "model=linear", "plots=false", "privacy.accountant=rdp", "privacy.delta=0.001",
    'algorithm.aggregate=[{name="clip_by_global_norm", clip_norm=1.0}, {name="mean", over="expected_cohort"}, '
    '{name="gaussian_noise", noise_multiplier=3.0}]',
]  # fmt: skip


def train(*arguments: str, settings=()):
    made = (item for setting in [*PRIVATE, *settings] for item in ("--set", setting))
    result = invoke("run", *made, *arguments, "--out", "mine")
    assert result.exit_code == 0, result.stderr
    return result


def test_a_run_that_its_budget_ended_says_so():
    result = train("--rounds", "500", settings=["privacy.epsilon=4.0"])
    with open("mine/summary.json") as file:
        summary = json.load(file)
    assert (summary["stopped"], summary["rounds_asked"]) == ("budget", 500)
    ended, folder = result.stdout.splitlines()[-2:]
    why = "the privacy budget, epsilon 4, pays for no more rounds"
    assert ended == f"ended       after {summary['rounds']} of 500 rounds: {why}"
    assert folder == "run folder  mine"
    assert invoke("resume", "mine", "--quiet").stdout == "mine\n"  # which a script reads


def test_a_private_run_ends_with_its_price():
    result = train("--rounds", "2")
    assert "ended" not in result.stdout
    assert "privacy" in result.stdout
    assert "at delta 0.001, for one client (replace_one)" in result.stdout
