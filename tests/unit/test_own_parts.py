"""Parts that users write: samplers, rules, servers and layers that do not keep to their form are named, and nothing hangs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from unit.small import SIZES, fedavg, make_data, params, simulation, task

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim.data._label_counts import has_labels
from fedjax_sim.data.cohorts import Cohort
from fedjax_sim.metrics import Mean

ENGINES = {"lanes": fs.engines.lanes(2), "sequential": fs.engines.sequential()}

# --- samplers ------------------------------------------------------------------------------------------------


def sampler(clients, cap=3, sampling="fixed") -> Cohort:
    return Cohort(lambda generator, round_, population: clients, lambda p: cap, lambda p: 3.0, sampling)


DRAWN = {
    "more than the cap": (
        np.arange(4),
        ValueError,
        "drew 4 clients for a round, but its cap says .* at most 3",
    ),
    "a negative index": ([0, 1, -1], ValueError, "drew client -1 in round 0, expected indices from 0 to 3"),
    "nobody there": ([0, 1, 4], ValueError, "drew client 4 in round 0, expected indices from 0 to 3"),
    "twice": ([0, 2, 2], ValueError, "drew client 2 twice in round 0: .*sampling='with_replacement'"),
    "fractions": ([0.0, 1.0, 2.5], TypeError, r"returned float64\[3\] in round 0, expected the indices"),
    "a mask": (np.ones(4, bool), TypeError, r"returned bool\[4\] in round 0, .*np.flatnonzero"),
    "a table": ([[0, 1]], TypeError, r"returned int64\[1, 2\] in round 0"),
}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_sampler_keeps_to_what_it_says(name, engine):
    clients, error, message = DRAWN[name]
    sim = simulation(cohort=sampler(clients), engine=ENGINES[engine])
    with pytest.raises(error, match=rf"Cohort\(fixed\) {message}"):
        sim.run(sim.init(seed=0), rounds=2)


@pytest.mark.parametrize("clients", [[], [3, 1], np.array([2], np.uint8), (0, 1, 2)])
def test_a_sampler_may_return_any_integers(clients):
    sim = simulation(cohort=sampler(clients))
    _, history = sim.run(sim.init(seed=0), rounds=2)
    assert (
        history["clients"].tolist() == [sum(client > 0 for client in clients)] * 2
    )  # client 0 has no examples


@pytest.mark.parametrize("keyed", [-1, 2**32, 1.5])
def test_the_number_of_a_rounds_generator_has_32_bits(keyed):
    sim = simulation(cohort=sampler([2])._replace(key_round=lambda round_, population: keyed))
    with pytest.raises(
        ValueError, match=rf"key_round gave {keyed} for round 0, expected an integer of 32 bits"
    ):
        sim.run(sim.init(0), 1)


def test_a_sampler_with_replacement_may_repeat():
    sim = simulation(cohort=sampler([2, 2, 1], sampling="with_replacement"))
    assert sim.run(sim.init(seed=0), rounds=1)[1]["clients"].tolist() == [3]


# --- rules and servers ---------------------------------------------------------------------------------------


def with_rule(**functions) -> fs.Algorithm:
    algorithm = fedavg()
    (stage,) = algorithm.stages
    changed = {name: make(getattr(stage.client, name)) for name, make in functions.items()}
    return algorithm._replace(stages=(stage._replace(client=stage.client._replace(**changed)),))


def with_server(make) -> fs.Algorithm:
    algorithm = fedavg()
    (stage,) = algorithm.stages
    return algorithm._replace(stages=(stage._replace(update=make(stage.update)),))


def measuring(name, value):
    """A function that returns one metric more."""
    return lambda function: lambda *given: (*function(*given)[:-1], {name: value})


def sending(change):
    """A rule's end whose update is changed."""
    return lambda finish: lambda *given: (change(finish(*given)[0]), *finish(*given)[1:])


def flat(delta: fs.Delta) -> fs.Delta:
    return delta._replace(params=jax.tree.map(lambda leaf: leaf[0], delta.params))


ONE = Mean(jnp.ones(()), jnp.ones(()))
WRONG = {
    "a step without metrics": (
        lambda: with_rule(step=lambda step: lambda *given: step(*given)[0]),
        TypeError, r"fedavg, stage 0: the rule's step returned a Training, expected 2: \(work, metrics\)",
    ),
    "an end without metrics": (
        lambda: with_rule(finish=lambda finish: lambda *given: finish(*given)[:2]),
        TypeError, r"the rule's finish returned 2 values, expected 3: \(update, state, metrics\)",
    ),
    "a server without metrics": (
        lambda: with_server(lambda update: lambda *given: update(*given)[0]),
        TypeError, r"the server's update returned a ServerState, expected 2: \(server state, metrics\)",
    ),
    "a step's metric that is a number": (
        lambda: with_rule(step=measuring("eta", jnp.ones(()))),
        TypeError, r"the rule's step measures 'eta' as \w+, expected a Mean\(total, weight\)",
    ),
    "a server's metric that is a number": (
        lambda: with_server(measuring("eta", 1.0)),
        TypeError, "the server's update measures 'eta' as float, expected a Mean",
    ),
    "metrics that are none": (
        lambda: with_rule(finish=lambda finish: lambda *given: (*finish(*given)[:2], None)),
        TypeError, "the rule's finish returned NoneType as its metrics, expected a dict of Mean",
    ),
    "a rule that measures the loss twice": (
        lambda: with_rule(finish=measuring("loss", ONE)),
        ValueError, "the metric 'loss' is measured by the rule's step and by the rule's finish",
    ),
    "a server that measures the clients' loss": (
        lambda: with_server(measuring("loss", ONE)),
        ValueError, "the metric 'loss' is measured by the clients and by the server",
    ),
    "a server that measures what the engine does": (
        lambda: with_server(measuring("bytes_up", ONE)),
        ValueError, "the metric 'bytes_up' is measured by the server and by the engine",
    ),
    "an update of another shape": (
        lambda: with_rule(finish=sending(flat)),
        TypeError, r"the update's params\['Dense_0'\]\['bias'\] has the shape \[\], expected that of the model's, \[2\]",
    ),
    "an update of another structure": (
        lambda: with_rule(finish=sending(lambda delta: delta._replace(params=delta.params["Dense_0"]))),
        TypeError, "the update's params have the structure .* expected that of the model's",
    ),
    "parameters alone as an update": (
        lambda: with_rule(finish=sending(lambda delta: delta.params)),
        TypeError, "the clients' mean update is a dict, expected a Delta",
    ),
    "parameters alone as a broadcast": (
        lambda: fedavg()._replace(stages=(fedavg().stages[0]._replace(broadcast=lambda s: s.variables.params),)),
        TypeError, "what the server broadcasts to the rule is a dict, expected Variables",
    ),
    "a stage that is no tuple of stages": (
        lambda: fedavg()._replace(stages=fedavg().stages[0]),
        TypeError, r"fedavg has stages=Stage, expected a tuple of at least one Stage: stages=\(stage,\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named_when_a_simulation_is_made(name):
    make, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        simulation(make())


def test_parameters_alone_are_no_model():
    sim = simulation(fedavg()._replace(params=lambda server: server.variables.params))
    with pytest.raises(
        TypeError, match="the model that fedavg's params returns is a dict, expected Variables"
    ):
        sim.evaluate(sim.init(seed=0), make_data())
    batch = {"x": jnp.ones((2, 3)), "y": jnp.zeros(2, jnp.int32), "mask": jnp.ones(2, bool)}
    with pytest.raises(TypeError, match=r"rules\.gradient differentiates at is a dict, expected Variables"):
        fs.rules.gradient(task(), {"w": jnp.ones(3)}, batch, jax.random.key(0))


def test_a_forward_pass_alone_is_no_module():
    with pytest.raises(
        TypeError, match=r"to make an nnx module, but it returned Rngs\. .* fs\.Task\(init, apply, loss\)"
    ):
        fs.tasks.classification(lambda x: x)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_client_without_examples_sends_zeros_whatever_its_rule_says(engine):
    """Nor does it count where a rule counts beside its update."""

    def counted(finish):
        def finish_(*given):
            delta, state, metrics = finish(*given)
            return fs.Message(jax.tree.map(jnp.ones_like, delta), {"came": jnp.ones(())}), state, metrics

        return finish_

    def adding(server, delta, ctx):
        change = jax.tree.map(jnp.add, server.variables.params, delta.params)
        return server._replace(variables=server.variables._replace(params=change)), {
            "came": Mean(ctx.aux["came"], jnp.ones(()))
        }

    algorithm = with_rule(finish=counted)
    stage = algorithm.stages[0]._replace(aggregate=agg.identity(), update=adding)
    sim = simulation(algorithm._replace(stages=(stage,)), engine=ENGINES[engine])
    before = sim.init(seed=0)
    after, history = sim.run(before, rounds=1)
    assert history["came"].tolist() == history["clients"].tolist() == [3]
    for old, new in zip(jax.tree.leaves(params(before)), jax.tree.leaves(params(after)), strict=True):
        np.testing.assert_allclose(new - old, 3, rtol=1e-6)


# --- layers --------------------------------------------------------------------------------------------------


def halving(**replaced) -> fs.Transform:
    def encode(message, client, server, ctx):
        return message._replace(value=jax.tree.map(lambda x: x / 2, message.value)), client, {}

    return agg.identity()._replace(**{"encode": encode, "facts": (fs.Facts("halving"),), **replaced})


UNNAMED = {
    "no facts": ((), r"facts=\(\), expected a tuple of one Facts, .*facts=\(Facts\('my_layer'\),\)"),
    "facts that are no tuple of facts": (fs.Facts("halving"), "expected a tuple of one Facts"),
    "two facts": ((fs.Facts("one"), fs.Facts("two")), "expected a tuple of one Facts"),
}


@pytest.mark.parametrize("name", UNNAMED)
def test_a_layer_says_who_it_is(name):
    facts, message = UNNAMED[name]
    with pytest.raises(TypeError, match=message):
        agg.chain(halving(facts=facts), agg.mean(over="clients"))


@pytest.mark.parametrize(
    "wrong",
    [{"reduction": "gahter"}, {"divisor": "half"}, {"norm": "l3"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_facts_have_words_that_mean_something(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"halving: the fact {name} is '{value}', expected one of"):
        agg.chain(halving(facts=(fs.Facts("halving", **wrong),)))


@pytest.mark.parametrize("called", ["halving", "identity"])
def test_a_layer_of_any_name_stays(called):
    chain = agg.chain(halving(facts=(fs.Facts(called),)), agg.mean(over="clients"))
    mean, _, _ = agg.run(chain, jnp.array([[3.0, 4.0], [1.0, 1.0]]), key=jax.random.key(0))
    np.testing.assert_allclose(mean, [1.0, 1.25])


RETURNED = {
    "init": (lambda spec: (), r"halving: init returned 0 values, expected 2: \(server part, client part\)"),
    "encode": (lambda message, *_: message, r"halving: encode returned a Message, expected 3: \(message, client part, metrics\)"),
    "decode": (lambda message, server, ctx: (message, server), r"halving: decode returned 2 values, expected 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", RETURNED)
def test_a_layer_returns_what_it_has_to(name):
    function, message = RETURNED[name]
    with pytest.raises(TypeError, match=message):
        agg.run(halving(**{name: function}), jnp.ones((2, 3)), key=jax.random.key(0))


def test_a_gather_may_count_on_the_rows_of_a_whole_cohort():
    """Such as Krum's number of neighbours, which depends on how many clients there are."""
    seen = []

    def decode(message, server, ctx):
        rows = jax.tree.leaves(message.value)[0]
        seen.append(rows.shape[0])
        smallest = jax.lax.top_k(jnp.zeros(rows.shape[0]), rows.shape[0] - 2)[0]
        return message._replace(value=jax.tree.map(lambda x: x[0] + smallest[0], message.value)), server, {}

    krum = agg.identity()._replace(decode=decode, facts=(fs.Facts("krum", reduction="gather"),))
    sim = simulation(fedavg(krum), cohort=fs.cohorts.uniform(3))
    sim.run(sim.init(seed=0), rounds=1)
    assert set(seen) == {3}


def test_a_model_larger_than_the_memory_is_refused():
    """JAX waits for ever where a first state cannot be allocated."""
    wide = fs.tasks.classification(fs.models.mlp(classes=2, hidden=(10**6, 10**6)))
    with pytest.raises(
        ValueError, match=r"the server's state takes 4 TB, more than a device's memory of .* smaller model"
    ):
        simulation(fs.algorithms.fedavg(wide, optax.sgd(0.1)))


def test_labels_that_number_no_classes_are_not_counted():
    data = make_data(y=np.arange(sum(SIZES), dtype=np.int32) * 10**8)
    assert not has_labels(data, 15 * 10**8) and has_labels(data, 15)


def test_numbers_of_numpy_are_numbers():
    """Where ``auto`` looks for a layout that was measured for them, too."""
    local = fs.LocalWork(epochs=np.int64(1), batch_size=np.int64(4))
    sim = simulation(fs.algorithms.fedavg(task(), optax.sgd(0.1)), local=local, engine=fs.engines.lanes())
    assert sim.run(sim.init(seed=0), rounds=1)[1].rounds == 1
