"""Nothing public stays outside the laws."""

from laws.members import ALGORITHMS
from laws.transforms import TRANSFORMS

from fedjax_sim import aggregation, algorithms


def test_every_algorithm_is_a_member():
    helpers = {"ServerState", "from_rule", "server_optimizers"}
    assert {member.build().name for member in ALGORITHMS} >= set(algorithms.__all__) - helpers


def test_every_transform_is_a_member():
    states = {"AdaptiveClipState", "FilterState", "BandedNoiseState", "TreeNoiseState"}
    results = {"Description", "LayerRow"}
    helpers = (
        {"chain", "describe", "identity", "run", "simulated", "banded_coefficients", "prefix_std"}
        | states
        | results
    )
    members = {layer.facts[0].name for chain in TRANSFORMS.values() for layer in chain.layers}
    assert members >= set(aggregation.__all__) - helpers
