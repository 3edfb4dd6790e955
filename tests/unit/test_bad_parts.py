"""Parts that cannot work: cohorts, local work, chains and rules refuse bad arguments when they are built."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from unit.small import fedavg, simulation, task

import fedjax_sim as fs
from fedjax_sim import aggregation as agg

# --- cohorts -------------------------------------------------------------------------------------------------

BAD_SAMPLERS = {
    "no client": (lambda: fs.cohorts.uniform(0), "cohort size is 0, expected an integer of at least 1"),
    "half a client": (lambda: fs.cohorts.uniform(2.5), "cohort size is 2.5, expected an integer"),
    "rate 0": (lambda: fs.cohorts.poisson(0.0), r"participation rate is 0.0, expected a number in \(0, 1\]"),
    "rate above 1": (lambda: fs.cohorts.poisson(1.5), "participation rate is 1.5"),
    "cap 0": (lambda: fs.cohorts.poisson(0.5, cap=0), "cohort cap is 0, expected an integer of at least 1"),
    "nobody": (lambda: fs.cohorts.fixed([]), "expected a list of at least one client index"),
    "twice": (lambda: fs.cohorts.fixed([3, 1, 3]), "names client 3 more than once; name each once"),
    "a table": (lambda: fs.cohorts.fixed([[1, 2]]), r"clients has shape \(1, 2\), expected a list"),
}


@pytest.mark.parametrize("name", BAD_SAMPLERS)
def test_samplers_refuse_what_they_cannot_draw(name):
    make, message = BAD_SAMPLERS[name]
    with pytest.raises(ValueError, match=message):
        make()


BAD_COHORTS = {
    "larger than the population": (
        fs.cohorts.uniform(5),
        r"cohort size is 5, but the population has 4 clients: draw at most 4, .*all_clients.*replace=True",
    ),
    "outside": (fs.cohorts.fixed([0, 4]), "names client 4, but the population has clients 0 to 3"),
    "negative": (fs.cohorts.fixed([-1]), "names client -1, but the population has clients 0 to 3"),
}


@pytest.mark.parametrize("name", BAD_COHORTS)
def test_a_cohort_must_fit_the_population(name):
    """Refused when the simulation is made, not in its first round."""
    cohort, message = BAD_COHORTS[name]
    with pytest.raises(ValueError, match=message):
        simulation(cohort=cohort)


def test_with_replacement_a_cohort_may_exceed_the_population():
    sim = simulation(cohort=fs.cohorts.uniform(9, replace=True))
    _, history = sim.run(sim.init(seed=0), rounds=2)
    assert np.isfinite(history["aggregate_norm"]).all()


# --- local work ----------------------------------------------------------------------------------------------

BAD_WORK = {
    "no batch": ({"batch_size": 0}, "LocalWork.batch_size is 0, expected an integer of at least 1"),
    "half an epoch": ({"epochs": 0.5}, "LocalWork.epochs is 0.5, expected an integer"),
    "no epoch": ({"epochs": 0}, "LocalWork.epochs is 0"),
    "no step": ({"max_steps": 0}, "LocalWork.max_steps is 0"),
    "no batch per step": ({"batches_per_step": 0}, "LocalWork.batches_per_step is 0"),
    "endless": ({"epochs": None}, "epochs=None leaves the number of steps open: give max_steps"),
    "rows without end": (
        {"rows": lambda g, n: g},
        "explicit rows leaves the number of steps open: give max_steps",
    ),
    "rows of several batches": (
        {"rows": lambda g, n: g, "max_steps": 1, "batches_per_step": 2},
        "explicit rows for one batch per step: .* batches_per_step=1 and a larger batch_size",
    ),
}


@pytest.mark.parametrize("name", BAD_WORK)
def test_local_work_must_be_defined(name):
    arguments, message = BAD_WORK[name]
    with pytest.raises(ValueError, match=message):
        fs.LocalWork(**arguments)


BAD_ROWS = {
    "beyond the client": ([[0, 5]], "gave row 5 for client 2, which has rows 0 to 4"),
    "below padding": ([[0, -2]], r"gave row -2 for client 2, .*-1 is padding"),
    "another batch size": ([[0, 1, 2]], r"gave int64\[1, 3\] for client 2, expected integers \[steps, 2\]"),
    "floats": ([[0.0, 1.0]], r"gave float64\[1, 2\] for client 2, expected integers"),
    "too many steps": ([[0, 1]] * 3, "gave 3 steps for client 2, max_steps is 2"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_explicit_rows_must_be_the_clients_own(name):
    rows, message = BAD_ROWS[name]
    local = fs.LocalWork(batch_size=2, max_steps=2, rows=lambda generator, size: np.array(rows))
    sim = simulation(cohort=fs.cohorts.fixed([2]), local=local)
    with pytest.raises(ValueError, match=message):
        sim.run(sim.init(seed=0), rounds=1)


def test_explicit_rows_are_not_asked_of_empty_clients():
    """They have none, and ``generator.integers(0, 0)`` would fail in the user's function."""
    local = fs.LocalWork(
        batch_size=2, max_steps=1, rows=lambda generator, size: generator.integers(0, size, (1, 2))
    )
    sim = simulation(local=local)
    _, history = sim.run(sim.init(seed=0), rounds=1)
    assert history.costs.steps == 3


# --- chains --------------------------------------------------------------------------------------------------

CLIP, NOISE = agg.clip_by_global_norm(1.0), agg.gaussian_noise(1.0)
PUBLIC = agg.mean(over="expected_cohort")
RIGHT = r"chain\(clip_by_global_norm\(C\), mean\(over='expected_cohort'\), gaussian_noise\(z\)\)"

BAD_CHAINS = {
    "gather behind a layer": (
        (CLIP, agg.coordinate_median()),
        r"coordinate_median gathers .* must stand first, .*: chain\(coordinate_median\(...\), clip_by_global_norm",
    ),
    "mean of a gather": (
        (agg.coordinate_median(), agg.mean()),
        "mean acts on a sum over clients, but coordinate_median",
    ),
    "noise on a gather": (
        (agg.coordinate_median(), CLIP, NOISE),
        "gaussian_noise acts on a sum .* Leave gaussian_noise out",
    ),
    "two means": ((agg.mean(), agg.mean()), "two means: the sum would be divided twice. Leave one out"),
    "clip of weighted updates": (
        (agg.mean(), CLIP),
        r"clip weighted updates. Clip precedes weighting: chain\(clip_by_global_norm\(...\), mean",
    ),
    "clip behind noise": (
        (CLIP, PUBLIC, NOISE, agg.clip_by_global_norm(0.5)),
        f"stands after gaussian_noise.*{RIGHT}",
    ),
    "noise without a clip": ((PUBLIC, NOISE), f"needs a bound on each client's message.*clip first.*{RIGHT}"),
    "noise alone": ((NOISE,), "needs a bound on each client's message"),
    "noise behind error feedback": (
        (CLIP, agg.top_k(0.5), PUBLIC, NOISE),
        "after any layer that can raise the norm",
    ),
    "noise without a mean": ((CLIP, NOISE), f"gaussian_noise stands behind no mean.*{RIGHT}"),
    "noise before the mean": ((CLIP, NOISE, PUBLIC), f"gaussian_noise.*{RIGHT}"),
    "noise on examples": ((CLIP, agg.mean(), NOISE), "example-weighted averaging, .* is not private"),
    "noise on those that came": (
        (CLIP, agg.mean(over="clients"), NOISE),
        "clients that happened to come, .* not private",
    ),
}


@pytest.mark.parametrize("name", BAD_CHAINS)
def test_a_wrong_chain_is_refused_when_it_is_built(name):
    """And the message says what would be right."""
    layers, message = BAD_CHAINS[name]
    with pytest.raises(ValueError, match=message):
        agg.chain(*layers)


def test_a_count_without_noise_of_its_own_is_refused():
    """The exact count of unclipped clients would reach the model through the next bound."""
    with pytest.raises(
        ValueError,
        match=r"gaussian_noise stands behind adaptive_clip with count_noise_std=0: .* not private. Set adaptive_clip\(count",
    ):
        agg.chain(agg.adaptive_clip(1.0), PUBLIC, NOISE)
    chain = agg.chain(agg.adaptive_clip(1.0, count_noise_std=0.5), PUBLIC, NOISE)
    assert [fact.count_noise_std for fact in chain.facts] == [0.5, None, None]
    # A sweep over the deviation: a traced value cannot be looked at, and passes.
    jax.jit(lambda std: agg.run(agg.chain(agg.adaptive_clip(1.0, count_noise_std=std), PUBLIC, NOISE),
                                jnp.ones((2, 1)), key=jax.random.key(0))[0])(0.5)  # fmt: skip


def two_widths(aggregate):
    sized = lambda width: fs.tasks.classification(fs.models.mlp(2, hidden=(width,)), sample_input=(1, 3))  # noqa: E731
    algorithm = fs.algorithms.heterofl(
        {"wide": sized(4), "narrow": sized(2)}, optax.sgd(0.1), aggregate=aggregate
    )
    return simulation(algorithm, groups=["wide", "narrow"] * 2)


def two_models(aggregate):
    return simulation(fs.algorithms.ifca(task(), optax.sgd(0.1), models=2, aggregate=aggregate))


COUNTED = {
    "heterofl": (two_widths, "coverage", "coverage_mean"),
    "ifca": (two_models, "members", "mean_by_model"),
}


@pytest.mark.parametrize("name", COUNTED)
def test_chains_that_cannot_count_beside_an_update_are_refused(name):
    """Gathers, noise and a mean over the whole cohort, for algorithms whose coordinates have cohorts of their own."""
    make, count, layer = COUNTED[name]
    own = getattr(agg, layer)()
    with pytest.raises(
        ValueError, match=f"coordinate_median gathers .* the clients send '{count}' .*{layer}"
    ):
        make(agg.chain(agg.coordinate_median(), CLIP))
    with pytest.raises(ValueError, match=r"gaussian_noise .* divisor depends on the data"):
        make(agg.chain(CLIP, own, NOISE))
    with pytest.raises(ValueError, match=f"{name}'s aggregate holds mean.*{layer}"):
        make(agg.chain(CLIP, agg.mean(over="clients")))
    public = agg.identity()._replace(facts=(fs.Facts("public", divisor="public"),))
    with pytest.raises(ValueError, match=f"the clients send '{count}' .* exact sum would be released"):
        make(agg.chain(CLIP, public, NOISE))
    make(agg.chain(agg.top_k(0.5), CLIP, own))


def test_means_that_count_need_what_they_count():
    with pytest.raises(ValueError, match="coverage_mean divides by 'coverage', but the clients send nothing"):
        simulation(fedavg(agg.coverage_mean()))
    with pytest.raises(ValueError, match=r"mean_by_model divides by 'members', .* rules\.train_chosen"):
        simulation(fedavg(agg.mean_by_model()))
    key, ones = jax.random.key(0), jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"update's root has shape \(3,\), expected a leading axis \(2,\)"):
        agg.run(agg.mean_by_model(), fs.Message(ones, {"members": ones[:, :2]}), key=key)
    with pytest.raises(ValueError, match="expected the same structure and shapes"):
        agg.run(agg.coverage_mean(), fs.Message(ones, {"coverage": ones[:, :2]}), key=key)


BAD_MESSAGES = {
    "aux": (fs.Message(jnp.ones((2, 1)), (1,)), "has tuple as aux, expected a mapping"),  # pyright: ignore
    "stack": (fs.Message(jnp.ones((2, 1)), {}, (1,)), "a stack, which belongs to the layers"),
    "nested": (fs.Message(fs.Message(jnp.ones((2, 1)))), "holds another message"),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_a_message_has_its_form(name):
    message, error = BAD_MESSAGES[name]
    with pytest.raises(TypeError, match=error):
        agg.run(agg.mean(), message, key=jax.random.key(0))


def test_a_layer_alone_is_checked_as_a_chain():
    with pytest.raises(ValueError, match="needs a bound on each client's message"):
        simulation(fedavg(NOISE))


def test_a_gather_refuses_layers_with_server_state():
    with pytest.raises(
        ValueError, match="adaptive_clip keeps state on the server, but coordinate_median gathers"
    ):
        simulation(fedavg(agg.chain(agg.coordinate_median(), agg.adaptive_clip())))


BAD_LAYERS = {
    "clip norm 0": (
        lambda: agg.clip_by_global_norm(0.0),
        "clip_norm is 0.0, expected a finite number above 0",
    ),
    "infinite clip norm": (lambda: agg.clip_by_global_norm(float("inf")), "clip_norm is inf"),
    "negative noise": (lambda: agg.gaussian_noise(-1.0), "noise_multiplier is -1.0"),
    "NaN": (lambda: agg.gaussian_noise(float("nan")), "noise_multiplier is nan"),
    "initial norm": (lambda: agg.adaptive_clip(-1.0), "initial_norm is -1.0"),
    "quantile": (
        lambda: agg.adaptive_clip(target_quantile=2),
        r"target_quantile is 2, expected a number in \[0, 1\]",
    ),
    "count noise": (lambda: agg.adaptive_clip(count_noise_std=-1), "count_noise_std is -1"),
    "share": (lambda: agg.top_k(0), r"top_k share is 0, expected a number in \(0, 1\]"),
    "mean over": (
        lambda: agg.mean(over="rounds"),
        r"mean\(over=...\) is 'rounds', expected one of 'examples'",
    ),
}


@pytest.mark.parametrize("name", BAD_LAYERS)
def test_layers_check_their_arguments(name):
    make, message = BAD_LAYERS[name]
    with pytest.raises(ValueError, match=message):
        make()


NOT_LAYERS = {
    "not called": (
        lambda: agg.chain(agg.mean),
        r"chain was given the function mean, .*: call it: mean\(...\)",
    ),
    "not called, inside": (
        lambda: agg.chain(agg.clip_by_global_norm(1.0), agg.mean),
        "chain was given the function mean",
    ),
    "not called, alone": (lambda: simulation(fedavg(agg.mean)), "chain was given the function mean"),
    "not called, in scaffold": (
        lambda: fs.algorithms.scaffold(task(), 0.1, aggregate=agg.mean),
        "chain was given the function mean",
    ),
    "a list": (lambda: agg.chain([agg.mean()]), r"chain was given list, .*one by one: chain\(\*layers\)"),
    "a number": (lambda: agg.chain(1.0), "chain was given float, expected a Transform: use the factories"),
}


@pytest.mark.parametrize("name", NOT_LAYERS)
def test_a_chain_is_made_of_transforms(name):
    make, message = NOT_LAYERS[name]
    with pytest.raises(TypeError, match=message):
        make()


# --- optimizers and numbers ----------------------------------------------------------------------------------

SCHEDULE = optax.constant_schedule(0.1)
NOT_OPTIMIZERS = {
    "fedavg": (
        lambda: fs.algorithms.fedavg(task(), 0.1),
        r"the client optimizer is 0.1, expected an optax optimizer: .* write optax.sgd\(0.1\)",
    ),
    "fedavg's server": (
        lambda: fs.algorithms.fedavg(task(), optax.sgd(0.1), 1.0),
        "the server optimizer is 1.0",
    ),
    "fedprox": (lambda: fs.algorithms.fedprox(task(), 0.1, mu=0.1), "the client optimizer is 0.1"),
    "ifca": (lambda: fs.algorithms.ifca(task(), 0.1, models=2), "the client optimizer is 0.1"),
    "mime": (lambda: fs.algorithms.mime(task(), 0.1), "the base optimizer is 0.1"),
    "scaffold's server": (lambda: fs.algorithms.scaffold(task(), 0.1, 1.0), "the server optimizer is 1.0"),
    "not called": (
        lambda: fs.algorithms.fedavg(task(), optax.sgd),
        r"is the function sgd, .*: call it, as in optax.sgd\(0.1\)",
    ),
    "a name": (
        lambda: fs.algorithms.fedavg(task(), "sgd"),
        r"is 'sgd', .*: use for example optax.sgd\(0.1\)",
    ),
    "a schedule in fedadam": (
        lambda: fs.algorithms.fedadam(task(), optax.sgd(0.1), learning_rate=SCHEDULE),
        r"learning_rate is the function .*, expected a finite number above 0; schedules work .*optax.sgd\(schedule\)",
    ),
    "a schedule in scaffold": (
        lambda: fs.algorithms.scaffold(task(), SCHEDULE),
        "learning_rate is the function",
    ),
    "a text": (
        lambda: fs.algorithms.scaffold(task(), "fast"),
        "learning_rate is 'fast', expected a finite number",
    ),
    "a list": (lambda: fs.cohorts.poisson([0.1, 0.2]), r"rate is a list, expected a number in \(0, 1\]"),
}


@pytest.mark.parametrize("name", NOT_OPTIMIZERS)
def test_optimizers_and_step_sizes_are_told_apart(name):
    """What takes an optimizer says so when it is given a number, and the other way round."""
    make, message = NOT_OPTIMIZERS[name]
    with pytest.raises(TypeError, match=message):
        make()


# --- rules that do not fit -----------------------------------------------------------------------------------


def test_work_that_changes_its_type_is_refused():
    """A rule's work is a loop's carry: the error names the leaf, before anything is compiled."""
    algorithm = fedavg()
    (stage,) = algorithm.stages
    half = lambda x: x.astype(jnp.float16)  # noqa: E731

    def step(broadcast, work, batch, ctx):
        work, metrics = stage.client.step(broadcast, work, batch, ctx)
        return work._replace(params=jax.tree.map(half, work.params)), metrics

    wrong = algorithm._replace(stages=(stage._replace(client=stage.client._replace(step=step)),))
    with pytest.raises(
        TypeError, match=r"fedavg, stage 0: .* before and after step differ at .*float32\[2\] became float16"
    ):
        simulation(wrong)


NO_STATISTICS = {
    "mime": lambda task: fs.algorithms.mime(task, optax.sgd(0.1)),
    "ifca": lambda task: fs.algorithms.ifca(task, optax.sgd(0.1), models=2),
    "scaffold": lambda task: fs.algorithms.scaffold(task, 0.1),
    "fedsgd": lambda task: fs.algorithms.fedsgd(task),
    "heterofl": lambda task: fs.algorithms.heterofl({"all": task}, optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", NO_STATISTICS)
def test_rules_without_a_use_for_batch_statistics_refuse_them(name):
    with pytest.raises(ValueError, match="statistics"):
        NO_STATISTICS[name](task()._replace(stats_policy="local"))
