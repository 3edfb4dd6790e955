"""Law 3: ``chain`` is associative and has an identity; nested chains equal flat ones, keys included."""

import jax
import pytest
from laws.members import bits_equal
from laws.transforms import TRANSFORMS

from fedjax_sim import aggregation as agg


def two_rounds(transform, message):
    """Aggregates, states and metrics of two rounds."""
    first, state, metrics = agg.run(transform, message, key=jax.random.key(7), num_examples=[3, 0, 1, 5])
    second, state, more = agg.run(transform, message, key=jax.random.key(7), state=state, round_=1)
    return first, second, state, metrics, more


def nested(layers):
    """Every grouping of neighbours whose parts are chains of their own; noise, for one, is none without its clip."""
    for start in range(len(layers)):
        for stop in range(start + 1, len(layers) + 1):
            if 1 < stop - start < len(layers) or len(layers) == 1:
                try:
                    inner = agg.chain(*layers[start:stop])
                except ValueError:
                    continue
                yield agg.chain(*layers[:start], inner, *layers[stop:])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_nested_chains_equal_flat_ones(name):
    """However layers are grouped: the same aggregate, state, metrics and noise, bit for bit."""
    layers, message = TRANSFORMS[name]
    flat = two_rounds(agg.chain(*layers), message)
    for transform in nested(layers):
        assert bits_equal(two_rounds(transform, message), flat)
        assert transform.facts == agg.chain(*layers).facts


@pytest.mark.parametrize("name", TRANSFORMS)
def test_identity_changes_nothing(name):
    """``identity()`` before, between and behind the layers changes no bit, and no key."""
    layers, message = TRANSFORMS[name]
    spaced = [transform for layer in layers for transform in (agg.identity(), layer)]
    with_identities = agg.chain(*spaced, agg.chain(), agg.chain(agg.identity(), agg.identity()))
    assert bits_equal(two_rounds(with_identities, message), two_rounds(agg.chain(*layers), message))
