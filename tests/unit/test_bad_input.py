"""Bad data, states and arguments of a simulation: a clear error that names the thing and the fix, or a defined behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from unit.small import columns, fedavg, make_data, params, simulation, task

import fedjax_sim as fs
from fedjax_sim import aggregation as agg

# --- defined behaviour ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "engine", [fs.engines.sequential(), fs.engines.lanes(2)], ids=lambda engine: engine.name
)
@pytest.mark.parametrize("cohort", [[0], [0, 4]])
def test_a_round_of_empty_clients_changes_nothing(engine, cohort):
    """A client without examples takes no step, has no weight, and its metrics are NaN: nothing was measured."""
    sim = simulation(data=make_data((0, 1, 5, 9, 0)), cohort=fs.cohorts.fixed(cohort), engine=engine)
    start = sim.init(seed=0)
    state, history = sim.run(start, rounds=2)
    assert jax.tree.all(jax.tree.map(np.array_equal, params(state), params(start)))
    assert int(state.round) == 2
    assert np.isnan(history["update_norm"]).all()
    assert history.costs.steps == 0


def test_an_empty_client_does_not_dilute_the_mean():
    """The others' mean is the same with and without it."""
    with_empty = simulation(fedavg(agg.mean(over="clients")), cohort=fs.cohorts.fixed([0, 2, 3]))
    without = simulation(fedavg(agg.mean(over="clients")), cohort=fs.cohorts.fixed([2, 3]))
    a, b = (params(sim.run(sim.init(seed=0), rounds=1)[0]) for sim in (with_empty, without))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


def test_a_client_with_one_example_takes_one_step():
    """Its batch is filled with zero rows that do not count: the step is that of the example alone."""
    data = make_data()
    sim = simulation(data=data, cohort=fs.cohorts.fixed([1]))
    start = sim.init(seed=0)
    state, history = sim.run(start, rounds=1)
    x, y = data.client("client-1")["x"], data.client("client-1")["y"]
    dense = params(start)["Dense_0"]
    error = jax.nn.softmax(x @ dense["kernel"] + dense["bias"]) - jax.nn.one_hot(y, 2)
    np.testing.assert_allclose(
        params(state)["Dense_0"]["kernel"], dense["kernel"] - 0.1 * x.T @ error, rtol=1e-5
    )
    assert history.costs.steps == history.costs.examples == 1


@pytest.mark.parametrize(
    "engine", [fs.engines.sequential(), fs.engines.lanes(2)], ids=lambda engine: engine.name
)
def test_wide_columns_are_held_in_32_bits(engine):
    """Without JAX's 64-bit mode, int64 and float64 columns train as int32 and float32 do, silently."""
    wide = make_data(**{name: column.astype(f"{column.dtype.kind}8") for name, column in columns().items()})
    a, b = (
        params(sim.run(sim.init(seed=0), rounds=1)[0])
        for sim in (simulation(data=wide, engine=engine), simulation(engine=engine))
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, a, b))


SIXTY_FOUR = {
    "fedavg": lambda: fedavg(),
    "scaffold": lambda: fs.algorithms.scaffold(task(), 0.1),
    "error feedback": lambda: fedavg(agg.chain(agg.top_k(0.5), agg.mean())),
}


@pytest.mark.parametrize("name", SIXTY_FOUR)
def test_64_bit_mode_runs_and_changes_nothing(name):
    """JAX's 64-bit mode widens what asks for it; a model of float32 stays one, and its client table."""

    def run():
        sim = simulation(SIXTY_FOUR[name]())
        return sim.run(sim.init(seed=0), rounds=1)[0]

    expected = run()
    with jax.enable_x64(True):
        got = run()
    assert jax.tree.all(jax.tree.map(lambda x, y: x.dtype == y.dtype, params(got), params(expected)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), params(got), params(expected))


# --- a model that is not finite ------------------------------------------------------------------------------


def with_poisoned_client() -> fs.ClientData:
    """Client 2's features overflow float32 when they are squared; they are finite, so the task takes them."""
    data = make_data()
    x = data.columns["x"].copy()
    x[1:6] = 3e38
    return make_data(x=x)


@pytest.mark.parametrize(
    "engine", [fs.engines.sequential(), fs.engines.lanes(2)], ids=lambda engine: engine.name
)
def test_a_model_that_is_not_finite_stops_the_run(engine):
    """The error names the round and the clients, and holds the rounds before."""
    cohorts = [[1, 3], [3, 2, 1]]
    cohort = fs.cohorts.all_clients()._replace(
        sample=lambda generator, round_, population: np.array(cohorts[round_])
    )
    sim = simulation(data=with_poisoned_client(), cohort=cohort, engine=engine)
    with pytest.raises(
        fs.NonFiniteModelError, match=r"not finite after round 1; .* client-2\..* clip"
    ) as caught:
        sim.run(sim.init(seed=0), rounds=2)
    assert caught.value.round == 1
    assert caught.value.clients == ("client-2",)
    assert caught.value.history.rounds == 1


def test_a_clip_takes_a_client_that_is_not_finite_out():
    """It becomes zero and is counted; the run goes on."""
    sim = simulation(fedavg(agg.chain(agg.clip_by_global_norm(1.0), agg.mean())), with_poisoned_client())
    state, history = sim.run(sim.init(seed=0), rounds=1)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params(state)))
    assert history["clip_by_global_norm/nonfinite"] == pytest.approx(1 / 3)


def test_a_server_that_overflows_is_not_blamed_on_clients():
    sim = simulation(fs.algorithms.fedavg(task(), optax.sgd(0.1), server=optax.sgd(float("inf"))))
    with pytest.raises(
        fs.NonFiniteModelError, match="every client's update was finite: the server's own step"
    ) as caught:
        sim.run(sim.init(seed=0), rounds=1)
    assert caught.value.clients == ()


def test_a_sweep_names_the_replica():
    sim = simulation(data=with_poisoned_client())
    with pytest.raises(fs.NonFiniteModelError, match="the model of replica 0 is not finite after round 0"):
        sim.sweep([0, 1], rounds=1)


# --- data that the task cannot train on ----------------------------------------------------------------------

BAD_COLUMNS = {
    "label too large": (
        {"y": np.full(15, 2)},
        "column 'y' holds label 2 at row 0, expected labels in .0, 2.",
    ),
    "negative label": ({"y": np.arange(15) % 2 - (np.arange(15) == 4)}, "holds label -1 at row 4"),
    "float labels": (
        {"y": np.zeros(15, np.float32)},
        "'y' has dtype float32, expected integer labels.*astype",
    ),
    "NaN": ({"x": np.where(np.arange(45).reshape(15, 3) == 7, np.nan, 0)}, "column 'x' holds nan at row 2"),
    "complex numbers": (
        {"x": np.zeros((15, 3), np.complex64)},
        r"'x' is complex64\[15, 3\], expected real numbers: .*np.stack\(\[x.real, x.imag\]",
    ),
    "infinity": ({"x": np.full((15, 3), -np.inf)}, "column 'x' holds -inf at row 0, expected finite"),
}


@pytest.mark.parametrize("name", BAD_COLUMNS)
def test_data_that_the_task_cannot_train_on_is_refused(name):
    replaced, message = BAD_COLUMNS[name]
    with pytest.raises(ValueError, match=message):
        simulation(data=make_data(**replaced))


def test_a_missing_column_is_named():
    data = fs.ClientData({"x": columns()["x"], "label": columns()["y"]}, [0, 15], ids=[0])
    with pytest.raises(ValueError, match=r"no column 'y' for the label, it has \['label', 'x'\]"):
        simulation(data=data)


def test_labels_of_another_shape_are_refused_by_the_loss():
    with pytest.raises(
        ValueError, match=r"expected logits \[batch, ..., classes\] and integers \[batch, ...\]"
    ):
        simulation(data=make_data(y=np.zeros((15, 2), np.int32)))


def test_a_loss_of_one_number_is_refused():
    """A loss is one value per example; the mean over a batch would weigh padding."""
    mean_loss = task()._replace(loss=lambda outputs, batch: jnp.mean(outputs))
    with pytest.raises(
        ValueError, match=r"loss has shape \(\), expected \(4,\): one value per example .* not their mean"
    ):
        simulation(fs.algorithms.fedavg(mean_loss, optax.sgd(0.1)))


def test_data_without_examples_is_refused():
    sim = simulation()
    with pytest.raises(ValueError, match="2 clients and no example: there is nothing to train on"):
        simulation(data=make_data((0, 0)))
    with pytest.raises(ValueError, match="2 clients and no example: there is nothing to evaluate on"):
        sim.evaluate(sim.init(seed=0), make_data((0, 0)))


# --- arguments of a simulation -------------------------------------------------------------------------------


def test_parts_of_the_wrong_kind_are_named():
    """A federated data set instead of its training part, a sampler's size, an engine that was not called."""
    federated = fs.data.Federated(make_data(), make_data(), "mine")
    with pytest.raises(
        TypeError,
        match=r"data is Federated, expected ClientData or ClientSource: pass the clients' data, .* data.train",
    ):
        simulation(data=federated)
    with pytest.raises(TypeError, match=r"cohort is int, expected Cohort: use one of fs.cohorts"):
        simulation(cohort=10)
    with pytest.raises(
        TypeError, match=r"engine is function, expected Engine: .* called: fs.engines.lanes\(\)"
    ):
        simulation(engine=fs.engines.lanes)
    with pytest.raises(TypeError, match=r"local is dict, expected LocalWork: use fs.LocalWork\(epochs=1"):
        simulation(local={"epochs": 1})
    with pytest.raises(
        TypeError, match=r"algorithm is ClientRule, expected Algorithm: use one of fs.algorithms"
    ):
        simulation(fs.rules.local_sgd(task(), optax.sgd(0.1)))


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_counts_are_integers_above_zero(value):
    sim = simulation()
    with pytest.raises(ValueError, match=f"rounds is {value}, expected an integer of at least 1"):
        sim.run(sim.init(seed=0), rounds=value)
    with pytest.raises(ValueError, match=r"rounds_per_chunk is .* expected an integer"):
        simulation(rounds_per_chunk=value)
    with pytest.raises(ValueError, match=r"lanes is .* expected an integer"):
        fs.engines.lanes(value)


def test_engines_refuse_what_they_cannot_use():
    with pytest.raises(ValueError, match="finish is 'eager', expected one of 'auto', 'compact', 'masked'"):
        fs.engines.lanes(2, finish="eager")
    with pytest.raises(ValueError, match=r"devices is 4096, but JAX sees .*jax_num_cpu_devices"):
        fs.engines.client_mesh(4096)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("data",))
    with pytest.raises(
        ValueError, match=r"mesh has axes .*data.*, expected .*clients.*: use fs.engines.client_mesh"
    ):
        fs.engines.sharded(mesh)


def test_evaluating_every_so_often_needs_data():
    sim = simulation()
    with pytest.raises(ValueError, match="every is given without evaluate_on"):
        sim.run(sim.init(seed=0), rounds=1, every=1)


STATEFUL = {
    "scaffold": lambda: fs.algorithms.scaffold(task(), 0.1),
    "ifca": lambda: fs.algorithms.ifca(task(), optax.sgd(0.1), models=2),
    "error feedback": lambda: fedavg(agg.chain(agg.top_k(0.5), agg.mean())),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_rule_with_state_refuses_sampling_with_replacement(name):
    with pytest.raises(
        ValueError, match=r"keeps state per client, .* drawn with replacement.*Draw without replacement"
    ):
        simulation(STATEFUL[name](), cohort=fs.cohorts.uniform(3, replace=True))


def test_a_sweep_refuses_a_stateful_variant_under_sampling_with_replacement():
    sim = simulation(cohort=fs.cohorts.uniform(3, replace=True))
    variant = lambda lr: fs.algorithms.scaffold(task(), lr)  # noqa: E731
    with pytest.raises(ValueError, match="keeps state per client"):
        sim.sweep([0], rounds=1, algorithm=variant, hyperparameters={"lr": [0.1]})


def test_sweeps_refuse_columns_that_do_not_fit():
    sim = simulation()
    with pytest.raises(ValueError, match="seeds is empty"):
        sim.sweep([], rounds=1)
    with pytest.raises(ValueError, match=r"hyperparameters\['lr'\] has 1 values, expected one per seed, 2"):
        sim.sweep([0, 1], rounds=1, algorithm=lambda lr: fedavg(rate=lr), hyperparameters={"lr": [0.1]})
    with pytest.raises(ValueError, match="algorithm and hyperparameters go together"):
        sim.sweep([0], rounds=1, hyperparameters={"lr": [0.1]})


# --- seeds ---------------------------------------------------------------------------------------------------

BAD_SEEDS = {
    "rbg": (
        lambda: jax.random.key(0, impl="rbg"),
        "implementation 'rbg', expected 'threefry2x32'.*depend on the lanes",
    ),
    "unsafe_rbg": (
        lambda: jax.random.key(0, impl="unsafe_rbg"),
        "expected 'threefry2x32'.*impl='threefry2x32'",
    ),
    "several": (lambda: jax.random.split(jax.random.key(0), 2), r"keys of shape \(2,\), expected one key"),
    "raw": (lambda: jax.random.PRNGKey(0), "expected an int or a typed key .*wrap_key_data"),
    "float": (lambda: 1.0, r"seed is float, expected an int or a typed key such as jax.random.key\(0\)"),
}


@pytest.mark.parametrize("name", BAD_SEEDS)
def test_a_seed_is_an_integer_or_a_threefry_key(name):
    make, message = BAD_SEEDS[name]
    with pytest.raises(TypeError, match=message):
        simulation().init(seed=make())


def test_keys_of_a_loop_of_ones_own_are_checked_too():
    variables = task().init(jax.random.key(0), {"x": jnp.zeros((1, 3))})
    batches = {"x": jnp.zeros((1, 2, 3)), "y": jnp.zeros((1, 2), jnp.int32)}
    with pytest.raises(TypeError, match="expected 'threefry2x32'"):
        fs.rules.run(
            fs.rules.local_sgd(task(), optax.sgd(0.1)), variables, batches, jax.random.key(0, impl="rbg")
        )
    with pytest.raises(TypeError, match="expected 'threefry2x32'"):
        agg.run(agg.mean(), jnp.zeros((2, 3)), key=jax.random.key(0, impl="rbg"))


def test_variables_of_another_model_are_refused():
    sim = simulation()
    good = sim.algorithm.params(sim.init(seed=0).server)
    with pytest.raises(TypeError, match=r"variables is dict, expected Variables\(params, frozen, stats\)"):
        sim.init(variables=good.params)
    with pytest.raises(ValueError, match=r"variables (lack|have, beside)"):
        sim.init(variables=fs.Variables({}))
    with pytest.raises(ValueError, match=r"\['kernel'\] is float32\[4, 2\], the task's is float32\[3, 2\]"):
        sim.init(
            variables=good._replace(params={"Dense_0": {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}})
        )


# --- groups --------------------------------------------------------------------------------------------------


def two_widths() -> fs.Algorithm:
    sized = lambda width: fs.tasks.classification(fs.models.mlp(2, hidden=(width,)), sample_input=(1, 3))  # noqa: E731
    return fs.algorithms.heterofl({"wide": sized(4), "narrow": sized(2)}, optax.sgd(0.1))


BAD_GROUPS = {
    "none": (
        None,
        r"heterofl has groups 'wide', 'narrow': .* groups=\[...\], one name for each of the 4 clients",
    ),
    "too few": (["wide"] * 3, "groups has 3 names, expected one for each of the 4 clients"),
    "unknown": (
        ["wide", "narrow", "medium", "wide"],
        r"groups\[2\] is 'medium', expected one of 'wide', 'narrow'",
    ),
}


@pytest.mark.parametrize("name", BAD_GROUPS)
def test_groups_must_fit(name):
    groups, message = BAD_GROUPS[name]
    with pytest.raises(ValueError, match=message):
        simulation(two_widths(), groups=groups)


def test_groups_that_nobody_asked_for_are_refused():
    with pytest.raises(
        ValueError, match="groups is given, but all clients of fedavg are alike; leave it out"
    ):
        simulation(groups=["a"] * 4)
