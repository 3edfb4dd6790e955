"""Nothing public stays outside the laws: whoever is in no table is named here, with the reason."""

import pytest
from laws import noises, private, test_clips, test_mutants_of_laws
from laws.members import ALGORITHMS
from laws.transforms import TRANSFORMS

from fedjax_sim import aggregation, algorithms

NO_TRANSFORMS = {
    "AdaptiveClipState": "a state",
    "BandedNoiseState": "a state",
    "FilterState": "a state",
    "TreeNoiseState": "a state",
    "Description": "what describe returns",
    "LayerRow": "what describe returns",
    "banded_coefficients": "numbers",
    "prefix_std": "numbers",
    "describe": "a table of a chain",
    "run": "runs a chain",
    "chain": "makes one of others: the laws are about it",
    "identity": "changes nothing, and chain drops it: law 3 puts it everywhere",
    "simulated": "a layer with another scale of noise, under the layer's own name: laws.private has two",
}
FACTS = {layer.facts[0].name: layer.facts[0] for case in TRANSFORMS.values() for layer in case.layers}
"""Of every public transform, by name."""
NOISES = {name for name, facts in FACTS.items() if facts.noise is not None}
CLIPS = {name for name, facts in FACTS.items() if facts.limits_norm}
IN_PRIVATE = {layer.facts[0].name for make in private.PRIVATE.values() for layer in make().parts}
NOT_PRIVATE = {
    "coordinate_median": "gathers messages, which no noise on a sum covers: chain refuses it",
    "trimmed_mean": "gathers messages, which no noise on a sum covers: chain refuses it",
    "coverage_mean": "divides by what the data decide: chain refuses noise behind it",
    "mean_by_model": "divides by what the data decide: chain refuses noise behind it",
}

TABLES = {
    "law 3: chains": (set(FACTS), {}),
    "law 6: clips, alone": (
        set(test_clips.CLIPS),
        {name: "limits no norm" for name in FACTS.keys() - CLIPS}
        | {"clip_by_client_norm": "its norms are no argument of a program; law 6 end to end has it"},
    ),
    "law 6, end to end, and law 10": (IN_PRIVATE, NOT_PRIVATE),
    "law 7: noise of runs": (
        {
            layer.facts[0].name
            for mechanism in noises.MECHANISMS.values()
            for layer in mechanism.transform.parts
        },
        {name: "adds no noise" for name in FACTS.keys() - NOISES},
    ),
    "law 10: mutants of every noise": (
        {make(1.0).facts[0].name for _, make in test_mutants_of_laws.LAWS.values()},
        {name: "adds no noise" for name in FACTS.keys() - NOISES},
    ),
}
"""Law to the names of its members, and who is excepted for what reason."""


def test_every_algorithm_is_a_member():
    helpers = {
        "ServerState": "a state",
        "from_rule": "makes an algorithm of a rule",
        "server_optimizers": "a package",
    }
    assert {member.build().name for member in ALGORITHMS} >= set(algorithms.__all__) - helpers.keys()


@pytest.mark.parametrize("table", TABLES)
def test_every_transform_is_a_member(table):
    members, excepted = TABLES[table]
    missing = set(aggregation.__all__) - NO_TRANSFORMS.keys() - members - excepted.keys()
    assert not missing, f"{table} does not run over {sorted(missing)}"
    assert not members & excepted.keys() & NOISES, "who is a member needs no exception"


def test_exceptions_are_public_names():
    """An exception for something that is gone would hide the next one of that name."""
    assert NO_TRANSFORMS.keys() <= set(aggregation.__all__)
    assert NOT_PRIVATE.keys() <= FACTS.keys()


def test_refused_compositions_are_the_reason():
    """What is excepted from privacy cannot stand before noise."""
    settings = {"trimmed_mean": (0.1,)}
    for name in NOT_PRIVATE:
        layer = getattr(aggregation, name)(*settings.get(name, ()))
        with pytest.raises(ValueError, match=name):
            aggregation.chain(layer, private.CLIPPED, private.NOISE)
