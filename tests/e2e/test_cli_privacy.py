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
        ([*POISSON, "--noise", "0"], "noise_multiplier is 0.0"),
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


# --- a file ---

FILE = """
rounds = 20
data = { name = "digits", clients = 50 }
model = "linear"
cohort = { name = "poisson", rate = 0.1 }
privacy = { delta = 1e-3 }
algorithm.name = "fedavg"
algorithm.client = { name = "sgd", learning_rate = 0.1 }
algorithm.aggregate = [
  { name = "clip_by_global_norm", clip_norm = 1.0 }, { name = "mean", over = "expected_cohort" },
  { name = "gaussian_noise", noise_multiplier = 2.0 },
]
"""


@pytest.fixture
def file(own_folder):
    path = own_folder / "private.toml"
    path.write_text(FILE)
    return path.name


def test_a_file_is_priced_as_it_will_run(file):
    (said,) = json.loads(invoke("privacy", file, "--json").stdout)
    result = invoke("run", file, "--set", "plots=false", "--out", "mine")
    assert result.exit_code == 0, result.stderr
    with open("mine/summary.json") as summary:
        (ran,) = json.load(summary)["replicas"][0]["privacy"]
    assert said == ran
    assert invoke("privacy", "mine", "--json").stdout == invoke("privacy", file, "--json").stdout


def test_a_price_of_a_file_says_what_it_is_for(file):
    price, end = invoke("privacy", file, "--rounds", "30", "--delta", "1e-4").stdout.splitlines()
    assert price.startswith("PLD  epsilon ") and "at delta 0.0001 for one client, replace_special" in price
    assert end.startswith("30 rounds. It covers the models alone")
    *_, end = invoke("privacy", file, "--set", "privacy.epsilon=0.5").stdout.splitlines()
    assert "of 20 rounds, which is what privacy.epsilon pays for" in end


def test_every_swept_setting_has_its_price(file):
    swept = "sweep.algorithm.aggregate=[[{name='identity'}]]"
    refused = invoke("privacy", file, "--set", swept)
    assert refused.exit_code == 2 and "nothing to price" in refused.stderr
    found = json.loads(invoke("privacy", file, "--set", "sweep.cohort.rate=[0.1, 0.2]", "--json").stdout)
    assert [one["run"] for one in found] == ["000-rate=0.1", "001-rate=0.2"]
    assert found[0]["epsilon"] < found[1]["epsilon"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["private.toml", "--noise", "1.0"], "--noise is said by private.toml itself"),
        (["none.toml"], "there is no file none.toml"),
        (["private.toml", "--set", "algorithm.aggregate=[]"], "there is nothing to price. Add a noise"),
        (["private.toml", "--set", "privacy.epsilon=0.0001"], "does not pay for the first round"),
        (["--rate", "0.1", "--noise", "1.0"], "give --rounds and --delta"),
    ],
)
def test_what_a_file_does_not_say(file, arguments, says):
    result = invoke("privacy", *arguments)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())


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
