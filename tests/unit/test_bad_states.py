"""States and algorithms given to a simulation that they do not belong to, and slips in the arguments of runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from unit.small import SIZES, fedavg, make_data, params, simulation, task

import fedjax_sim as fs
from fedjax_sim import aggregation as agg


def scaffold() -> fs.Algorithm:
    return fs.algorithms.scaffold(task(), 0.1)


def with_rows(state: fs.SimState, rows: int) -> fs.SimState:
    """The state with a client table of so many rows, filled with zeros, as another mesh has it."""
    grow = lambda x: jnp.pad(x, [(0, rows - x.shape[0])] + [(0, 0)] * (x.ndim - 1))  # noqa: E731
    return dataclasses.replace(state, clients=jax.tree.map(grow, state.clients))


# --- what a state is -----------------------------------------------------------------------------------------


def test_a_run_wants_a_state():
    sim = simulation()
    with pytest.raises(
        TypeError, match=r"state is int, expected a SimState: make one with sim.init\(seed=0\)"
    ):
        sim.run(0, 2)
    with pytest.raises(TypeError, match=r"state is tuple, .* returns two things: state, history = sim.run"):
        sim.run(sim.run(sim.init(seed=0), rounds=1), rounds=1)
    with pytest.raises(TypeError, match="state is dict, expected a SimState"):
        sim.evaluate({}, make_data())
    with pytest.raises(TypeError, match="state is NoneType, expected a SimState"):
        sim.personalised(None, make_data())


def test_a_state_of_another_algorithm_is_refused():
    state = simulation().init(seed=0)
    sim = simulation(scaffold())
    with pytest.raises(
        ValueError,
        match=r"state.server has structure .*ServerState.*, scaffold expects .*ScaffoldState.*sim.init",
    ):
        sim.run(state, rounds=1)
    with pytest.raises(ValueError, match="it is the state of another algorithm, chain or model"):
        simulation(fedavg(agg.chain(agg.adaptive_clip(), agg.mean()))).run(state, rounds=1)


def test_a_state_of_another_model_is_refused():
    state = simulation(
        fs.algorithms.fedavg(fs.tasks.classification(fs.models.linear(classes=3)), optax.sgd(0.1))
    ).init()
    with pytest.raises(
        ValueError, match=r"\['bias'\] is float32\[3\], fedavg expects float32\[2\]: .* another model"
    ):
        simulation().run(state, rounds=1)


def test_the_stacked_states_of_a_sweep_are_refused():
    sim = simulation()
    state = jax.tree.map(lambda x: jnp.stack([x, x]), sim.init(seed=0))
    with pytest.raises(ValueError, match="or of several runs of a sweep"):
        sim.run(state, rounds=1)


# --- the client table ----------------------------------------------------------------------------------------

STATEFUL = {"scaffold": scaffold, "error feedback": lambda: fedavg(agg.chain(agg.top_k(0.5), agg.mean()))}


@pytest.mark.parametrize(
    "engine", [fs.engines.lanes(2), fs.engines.sequential()], ids=lambda engine: engine.name
)
@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_of_fewer_clients_is_refused(name, engine):
    few = simulation(STATEFUL[name](), make_data(SIZES[:3]))
    state, _ = few.run(few.init(seed=0), rounds=1)
    with pytest.raises(ValueError, match=r"state of 3 clients, the data has 4: .* another population"):
        simulation(STATEFUL[name](), engine=engine).run(state, rounds=1)


@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_of_more_clients_is_refused(name):
    many = simulation(STATEFUL[name](), make_data((*SIZES, 4, 3)))
    state, _ = many.run(many.init(seed=0), rounds=1)
    with pytest.raises(ValueError, match="state of 6 clients, the data has 4"):
        simulation(STATEFUL[name]()).run(state, rounds=1)


@pytest.mark.parametrize(
    "engine", [fs.engines.lanes(2), fs.engines.sequential()], ids=lambda engine: engine.name
)
@pytest.mark.parametrize("name", STATEFUL)
def test_a_table_padded_for_another_mesh_is_accepted(name, engine):
    """Rows beyond the population that nobody used hold nothing; the result is the same."""
    sim = simulation(STATEFUL[name](), engine=engine)
    state, _ = sim.run(sim.init(seed=0), rounds=1)
    expected, _ = sim.run(state, rounds=1)
    got, _ = sim.run(with_rows(state, 8), rounds=1)
    assert jax.tree.all(jax.tree.map(np.array_equal, params(got), params(expected)))


# --- arguments of runs ---------------------------------------------------------------------------------------


def test_a_whole_data_set_is_not_what_a_model_is_evaluated_on():
    """The likeliest slip: ``data`` instead of ``data.test``."""
    sim, federated = simulation(), fs.data.Federated(make_data(), make_data(), "mine")
    state = sim.init(seed=0)
    message = "is Federated, expected ClientData: a data set has two parts, pass data.test"
    with pytest.raises(TypeError, match=f"data {message}"):
        sim.evaluate(state, federated)
    with pytest.raises(TypeError, match=f"data {message}"):
        fs.evaluate(sim.algorithm.task, sim.algorithm.params(state.server), federated)
    with pytest.raises(TypeError, match=f"evaluate_on {message}"):
        sim.run(state, rounds=1, evaluate_on=federated)
    with pytest.raises(TypeError, match=rf"evaluate_on\['unseen'\] {message}"):
        sim.run(state, rounds=1, evaluate_on={"unseen": federated})
    with pytest.raises(TypeError, match=r"evaluate_on is list, expected ClientData: pass data.test"):
        sim.sweep([0], rounds=1, evaluate_on=[make_data()])


def test_unknown_hyperparameters_of_a_sweep_are_named():
    sim, factory = simulation(), lambda lr: fedavg(rate=lr)
    with pytest.raises(
        TypeError,
        match=r"has the names 'rate', but algorithm is called as algorithm\(lr\): .*one column for each",
    ):
        sim.sweep([0], rounds=1, algorithm=factory, hyperparameters={"rate": [0.1]})
    with pytest.raises(TypeError, match=r"names 'lr', 'mu', but .* unexpected keyword argument 'mu'"):
        sim.sweep([0], rounds=1, algorithm=factory, hyperparameters={"lr": [0.1], "mu": [0.1]})


def test_a_sweep_over_groups_needs_them():
    wide = fs.tasks.classification(fs.models.mlp(2, hidden=(4,)), sample_input=(1, 3))
    factory = lambda lr: fs.algorithms.heterofl({"wide": wide}, optax.sgd(lr))  # noqa: E731
    with pytest.raises(ValueError, match=r"heterofl has groups 'wide': .* groups=\[...\]"):
        simulation().sweep([0], rounds=1, algorithm=factory, hyperparameters={"lr": [0.1]})


PRIVATE = agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(1.0))


def test_noise_refuses_sampling_with_replacement():
    """A client that is drawn twice enters the sum twice; the noise is scaled to one message."""
    message = (
        "fedavg has gaussian_noise .* drawn with replacement.*Draw without replacement: fs.cohorts.poisson"
    )
    cohort = fs.cohorts.uniform(3, replace=True)
    with pytest.raises(ValueError, match=message):
        simulation(fedavg(PRIVATE), cohort=cohort)
    sim = simulation(cohort=cohort)
    with pytest.raises(ValueError, match=message):
        sim.sweep([0], rounds=1, algorithm=lambda lr: fedavg(PRIVATE, lr), hyperparameters={"lr": [0.1]})


@pytest.mark.parametrize(("answer", "rounds"), [(True, 2), (np.True_, 2), (np.False_, 4), (1, 4), (None, 4)])
def test_a_callback_ends_a_run_with_a_truth_value(answer, rounds):
    """Also with numpy's, which comparisons of metrics give; other values mean nothing."""
    sim = simulation(rounds_per_chunk=2)
    _, history = sim.run(sim.init(seed=0), rounds=4, callbacks=[lambda progress: answer])
    assert history.rounds == rounds


def test_a_server_that_changes_its_dtypes_is_refused_when_a_simulation_is_made():
    algorithm = fedavg()
    (stage,) = algorithm.stages

    def update(server, delta, ctx):
        server, metrics = stage.update(server, delta, ctx)
        half = lambda x: x.astype(jnp.float16)  # noqa: E731
        variables = server.variables._replace(params=jax.tree.map(half, server.variables.params))
        return server._replace(variables=variables), metrics

    with pytest.raises(
        TypeError, match=r"the server's state before and after its update differ at .*became float16"
    ):
        simulation(algorithm._replace(stages=(stage._replace(update=update),)))
