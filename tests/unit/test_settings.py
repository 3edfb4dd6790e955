"""Configuration: what is wrong is refused with the key's path, what is right is complete and comes back from TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import tomli_w

from fedjax_sim import experiment
from fedjax_sim.cli._lists import STARTER
from fedjax_sim.experiment import ConfigError, _settings


def resolve(*changes: str, tables=None) -> dict:
    return _settings.resolve(tables or {}, [_settings.assignment(change) for change in changes])


def test_the_default_is_complete_and_survives_toml():
    settings = resolve()
    assert settings["algorithm"] == {
        "name": "fedavg", "client": {"name": "sgd", "learning_rate": 0.1, "nesterov": False},
    }  # fmt: skip
    assert settings["local"]["batch_size"] == 20 and settings["seeds"] == [0]
    again = tomllib.loads(tomli_w.dumps(settings))
    assert again == settings
    assert _settings.resolve(again) == settings, "complete settings are settings"


def test_the_starter_describes_the_default():
    assert _settings.resolve(tomllib.loads(STARTER)) == resolve()


def test_every_commented_line_of_the_starter_works_when_it_is_uncommented():
    lines = []
    for line in STARTER.splitlines():
        bare = line.removeprefix("# ")
        is_setting = line.startswith("# ") and (bare.startswith(("[", "{", "]", " ")) or " = " in bare)
        # What extends names another file, which only a reader of files knows.
        said = "fedjax-sim" in line or bare.startswith("extends")
        lines.append(bare if is_setting and not said else line)
    settings = _settings.resolve(tomllib.loads("\n".join(lines)))
    assert [layer["name"] for layer in settings["algorithm"]["aggregate"]] == [
        "clip_by_global_norm", "mean", "gaussian_noise",
    ]  # fmt: skip
    assert settings["sweep"] == {"algorithm.client.learning_rate": [0.01, 0.1]}
    assert settings["unseen"] == {"fraction": 0.1, "seed": 0} and settings["partition"]["name"] == "shards"


@pytest.mark.parametrize("kind", experiment.kinds())
def test_every_component_can_be_listed(kind):
    for name in experiment.names(kind):
        entry = experiment.find(kind, name, kind)
        assert entry.summary.strip(), f"{name} has no docstring"
        for parameter in entry.parameters.values():
            assert parameter.says and parameter.shown_default


@pytest.mark.parametrize("kind", experiment.kinds())
def test_every_component_is_said_in_whole_sentences(kind):
    """Also of those whose citation, in brackets, has a stop in it."""
    for name in experiment.names(kind):
        summary = experiment.find(kind, name, kind).summary
        assert summary and summary.count("(") == summary.count(")"), name
        assert not summary.endswith("al."), name
        assert summary[-1] in ".;:", name


WRONG = {
    "unknown key": (["rouns=3"], "rouns is no setting of an experiment; it has name, rounds.* Did you mean 'rounds'?"),
    "unknown precision": (
        ["precision.compute=bfloat61"],
        'precision.compute is "bfloat61", expected one of "float32", "bfloat16". Did you mean \'bfloat16\'?',
    ),
    "unknown key in a table": (["local.epoch=3"], "local.epoch is no setting of local; .* Did you mean 'epochs'?"),
    "unknown key deep": (
        ["algorithm.client.lr=3"],
        "algorithm.client.lr is no setting of sgd; it has learning_rate, momentum, nesterov",
    ),
    "unknown name": (
        ["algorithm.name=fedavgg"],
        'algorithm.name is "fedavgg", expected one of fedavg, .* or one of your own .* Did you mean \'fedavg\'?',
    ),
    "no name": (["algorithm.aggregate=[{over='clients'}]"], r"algorithm.aggregate\[0\].name is missing, expected one of"),
    "a typo without a name": (["algorithm={lr=0.1}"], "algorithm.lr is no setting of fedavg; it has client, server, aggregate"),
    "an unknown name without a name": (["algorithm={client='sgdd'}"], "algorithm.client.name is \"sgdd\", .*Did you mean 'sgd'?"),
    "missing": (["algorithm.name=scaffold"], "algorithm.learning_rate is missing; scaffold needs it \\(a number: .*step size"),
    "another algorithm's setting": (
        ["algorithm.name=scaffold", "algorithm.client.name=sgd"],
        "algorithm.client is no setting of scaffold; .* Its clients take plain SGD steps: set learning_rate.",
    ),
    "text for a number": (["algorithm.client.learning_rate=fast"], 'learning_rate is "fast", expected a number.'),
    "number for text": (["name=3"], "name is 3, expected text."),
    "float for an integer": (["cohort.size=2.5"], "cohort.size is 2.5, expected an integer."),
    "truth for an integer": (["rounds=true"], "rounds is true, expected an integer."),
    "infinite": (["algorithm.client.learning_rate=inf"], "learning_rate is inf, expected a number."),
    "choice": (
        ["algorithm.aggregate=[{name='mean', over='exmples'}]"],
        r'algorithm.aggregate\[0\].over is "exmples", expected one of "examples".* Did you mean \'examples\'?',
    ),
    "item of a list": (["model.hidden=[3,'a']"], r'model.hidden\[1\] is "a", expected an integer.'),
    "no table": (["local=3"], "local is 3, expected a table."),
    "no component": (["algorithm.client=3"], "algorithm.client is 3, expected a table with a name, one of sgd"),
    "no rounds": (["rounds=0"], "rounds is 0, expected an integer of at least 1."),
    "seeds twice": (["seeds=[1,1]"], r"seeds is \[1, 1\], expected different integers"),
    "no seeds": (["seeds=[]"], r"seeds is \[\], expected different integers"),
    "never": (["evaluation.every=0"], "evaluation.every is 0, expected an integer of at least 1."),
    "no time": (["clock.up_megabytes_per_second=0"], "clock.up_megabytes_per_second is 0.0, expected a number above 0"),
    "sweep of nothing": (["sweep.rounds=3"], "sweep.rounds is 3, expected a list of values."),
    "sweep of a typo": (["sweep.algorithm.client.lr=[1]"], "algorithm.client.lr is no setting of sgd"),
    "sweep of a wrong value": (["sweep.local.epochs=[1,'two']"], 'local.epochs is "two", expected an integer.'),
    "sweep of seeds": (["sweep.seeds=[[1],[2]]"], r"sweep.seeds: seeds cannot be swept. Give seeds = \[0, 1, 2\]."),
    "module that is not there": (["model.name=nowhere:model"], 'model.name is "nowhere:model", but it cannot be imported'),
    "module without it": (["model.name=json:model"], "model.name is \"json:model\", but it cannot be imported"),
    "not a function": (["model.name=math:pi"], "which is float, expected a function or class"),
    "what TOML cannot give": (["model.name=json:loads"], "loads has the parameter s of type .* annotate it"),
    "past the end": (["algorithm.aggregate=[]", "algorithm.aggregate[2].over=clients"], "algorithm.aggregate has 0 items"),
    "through a number": (["rounds=3", "rounds.x.y=3"], "rounds.x.y cannot be set: rounds is 3, expected a table"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_with_its_path(name):
    changes, message = WRONG[name]
    with pytest.raises(ConfigError, match=message.replace("?", r"\?").replace(r"\\?", "?")):
        resolve(*changes)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("rounds=3", "rounds", 3),
        (" a.b = [1, 2.5] ", "a.b", [1, 2.5]),
        ("data.name=npz", "data.name", "npz"),
        ("data.path=../files/a.npz", "data.path", "../files/a.npz"),
        ('name="two words"', "name", "two words"),
        ("x={name='mean'}", "x", {"name": "mean"}),
        ("a.b[1].c=true", "a.b[1].c", True),
    ],
)
def test_assignments(text, key, value):
    assert _settings.assignment(text) == (key, value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rounds", "is no setting, expected key=value"),
        ("=3", "is no setting"),
        ("a b=3", "is no setting"),
        ("name=two words", "is no value of TOML: put text into quotes"),
    ],
)
def test_what_is_no_assignment(text, message):
    with pytest.raises(ConfigError, match=message):
        _settings.assignment(text)


def test_changes_reach_into_lists_and_make_tables_of_names():
    settings = resolve("algorithm.aggregate=['mean']", "algorithm.aggregate[0].over=clients")
    assert settings["algorithm"]["aggregate"] == [{"name": "mean", "over": "clients"}]
    settings = resolve(tables={"cohort": "all_clients"})
    assert settings["cohort"] == {"name": "all_clients"}


@pytest.mark.parametrize("part", _settings.DEFAULTS)
def test_a_table_without_a_name_is_the_defaults(part):
    assert resolve(tables={part: {}}) == resolve()


def test_a_table_without_a_name_changes_what_it_says_alone():
    settings = resolve(tables={"algorithm": {"client": {"momentum": 0.9}}, "cohort": {"size": 3}})
    client = settings["algorithm"]["client"]
    assert (settings["algorithm"]["name"], client["learning_rate"], client["momentum"]) == (
        "fedavg",
        0.1,
        0.9,
    )
    assert settings["cohort"] == {"name": "uniform", "size": 3, "replace": False}
    settings = resolve(tables={"algorithm": {"client": {"name": "adam", "learning_rate": 0.01}}})
    assert settings["algorithm"]["client"]["name"] == "adam"


def test_a_new_name_drops_the_settings_of_the_default_but_not_of_the_file():
    changes = ["algorithm.name=scaffold", "algorithm.learning_rate=0.1"]
    assert "client" not in resolve(*changes)["algorithm"]
    with pytest.raises(ConfigError, match=r"algorithm.client is no setting of scaffold"):
        resolve(
            *changes,
            tables={"algorithm": {"name": "fedavg", "client": {"name": "sgd", "learning_rate": 1.0}}},
        )


def test_a_file_that_is_not_there_or_not_toml(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*nowhere.toml"):
        experiment.load(tmp_path / "nowhere.toml")
    (tmp_path / "a.toml").write_text("rounds = \n")
    with pytest.raises(ConfigError, match=r"a.toml is not TOML: .*line 1"):
        experiment.load(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"b.toml is not TOML"):
        experiment.load(tmp_path / "b.toml")


# --- one's own components ------------------------------------------------------------------------------------

OWN = '''
import flax.linen as nn
import numpy as np
import fedjax_sim as fs

class Tiny(nn.Module):
    classes: int
    width: int

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(self.classes)(nn.relu(nn.Dense(self.width)(x)))

def tiny(classes: int, width: int = 3) -> nn.Module:
    """A network of my own.

    Args:
      width: of the hidden layer.
    """
    return Tiny(classes, width)

def blobs(clients: int = 4, seed: int = 0) -> fs.data.Federated:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 3, 40).astype(np.int32)
    x = (generator.normal(size=(40, 2)) + y[:, None]).astype(np.float32)
    data = fs.ClientData.from_arrays({"x": x, "y": y}, np.arange(40) % clients, ids=range(clients))
    return fs.data.Federated(*fs.data.split(data, 0.25, seed), name="blobs", classes=3)

def wrong() -> int:
    return 3
'''


def test_components_of_ones_own_by_module_path(tmp_path):
    (tmp_path / "own_parts.py").write_text(OWN)
    (tmp_path / "mine.toml").write_text(
        """
rounds = 2
paths = ["."]
[data]
name = "own_parts:blobs"
clients = 5
[model]
name = "own_parts:tiny"
width = 7
[cohort]
name = "uniform"
size = 2
"""
    )
    found = experiment.load(tmp_path / "mine.toml")
    assert found.settings["paths"] == [str(tmp_path)]
    assert found.federated.train.num_clients == 5
    sim = found.simulation()
    state, history = sim.run(sim.init(0), 2)
    assert state.server.variables.params["Dense_1"]["kernel"].shape == (2, 7) and history.rounds == 2
    with pytest.raises(
        ConfigError, match=r"model.widht is no setting of own_parts:tiny; it has classes, width"
    ):
        experiment.load(tmp_path / "mine.toml", ["model.widht=3"])
    with pytest.raises(
        ConfigError, match=r"data: own_parts:wrong returned int, expected fedjax_sim.data.Federated"
    ):
        experiment.load(tmp_path / "mine.toml", ["data={name='own_parts:wrong'}"]).federated  # noqa: B018


def test_register_gives_a_name():
    import optax

    def halved(learning_rate: float) -> optax.GradientTransformation:
        """SGD with half the step."""
        return optax.sgd(learning_rate / 2)

    experiment.register("optimizers", "halved_for_a_test", halved)
    experiment.register("optimizers", "halved_for_a_test", halved)  # the same again is no clash
    settings = resolve("algorithm.client={name='halved_for_a_test', learning_rate=1}")
    assert settings["algorithm"]["client"] == {"name": "halved_for_a_test", "learning_rate": 1.0}
    with pytest.raises(ValueError, match=r"optimizers has a 'sgd' already"):
        experiment.register("optimizers", "sgd", halved)
    with pytest.raises(
        ConfigError, match=r"kind is .optimizer., expected one of .* Did you mean 'optimizers'"
    ):
        experiment.register("optimizer", "x", halved)


def test_an_installed_package_gives_names_by_entry_points(monkeypatch):
    import importlib.metadata

    from fedjax_sim.experiment import _registry

    point = importlib.metadata.EntryPoint("halved", "fedjax_sim.models:linear", "fedjax_sim.models")
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [point] if group == "fedjax_sim.models" else []
    )
    _registry._entry_points.cache_clear()
    try:
        assert "halved" in experiment.names("models")
        assert resolve("model=halved")["model"] == {"name": "halved"}
        with pytest.raises(ConfigError, match=r"one of linear, .*halved"):
            resolve("model=gpt")
    finally:
        _registry._entry_points.cache_clear()


def test_paths_of_data_begin_at_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.toml").write_text('[data]\nname = "npz"\npath = "toy.npz"\n')
    found = experiment.load(Path("deep") / "a.toml")
    assert found.settings["data"]["path"] == str(tmp_path / "deep" / "toy.npz")
    with pytest.raises(ConfigError, match=r"^data: .*toy.npz does not exist"):
        found.federated  # noqa: B018


# --- parts that do not fit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["cohort.size=60"], "cohort size is 60, but the population has 50 clients"),
        (["local.batch_size=0"], "local: LocalWork.batch_size is 0"),
        (["data.alpha=-1"], "data: alpha is -1.0"),
        (["algorithm.aggregate=['mean',{name='gaussian_noise',noise_multiplier=1}]"], "algorithm: .*noise"),
        (["model.name=char_lstm"], "column 'x' holds token 80 at row 0"),
        (["unseen={fraction=2,seed=0}"], "unseen: fraction is 2.0"),
        (["partition={name='shards',clients=10000}"], "partition: "),
        (["cohort={name='uniform',size=5,replace=true}", "algorithm={name='scaffold',learning_rate=0.1}"], "replacement"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_before_training(changes, message):
    with pytest.raises(ConfigError, match=message):
        experiment.load(changes=changes).simulation()


def test_advice_is_in_toml_where_the_settings_are():
    aggregate = "algorithm.aggregate=[{name='gaussian_noise', noise_multiplier=1.0}]"
    with pytest.raises(ConfigError, match="algorithm: gaussian_noise needs a bound") as caught:
        experiment.load(changes=["data.clients=20", aggregate]).algorithm()
    assert "chain(" not in str(caught.value)
    assert (
        '{ name = "mean", over = "expected_cohort" }, { name = "gaussian_noise", noise_multiplier = z }]'
        in str(caught.value)
    )


def test_components_are_swept_as_whole_tables():
    with pytest.raises(
        ConfigError, match=r"sweep.model.name: another name has settings of its own. Sweep the whole"
    ):
        experiment.load(changes=["sweep.model.name=['mlp','linear']"])
    programs = experiment.load(changes=["sweep.model=[{name='mlp',hidden=[8]},{name='linear'}]"]).programs()
    assert [program.settings["model"] for program in programs] == [
        {"name": "mlp", "hidden": [8]}, {"name": "linear"},
    ]  # fmt: skip
    assert all(not set(program.name) & set("/ {}'\"") for program in programs)


def test_the_partition_and_the_unseen_clients_are_made():
    found = experiment.load(
        changes=[
            "partition={name='iid',clients=10,test_fraction=0.2}",
            "unseen={fraction=0.2,seed=1}",
            "cohort.size=3",
        ]
    )
    assert found.federated.train.num_clients == 8
    assert {name: data.num_clients for name, data in found.evaluation_sets().items()} == {
        "eval": 8,
        "unseen": 2,
    }


def test_partitions_are_made_of_partitions():
    shards = "{name='shards',clients=10,shards_per_client=1}"
    mixed = experiment.load(changes=[f"partition={{name='mixture',skewed={shards},iid_fraction=0.5,seed=3}}"])
    assert mixed.federated.train.num_clients == 10
    assert "rest: shards, clients 10, shards_per_client 1, seed 3" in mixed.federated.notes[-1]
    tree = experiment.load(
        changes=[f"partition={{name='hierarchical',edges={shards},clients={{name='iid',clients=3}}}}"]
    )
    edges = tree.federated.edges
    assert edges is not None and len(edges) == tree.federated.train.num_clients == 30


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("{name='iid',sede=1}", "partition.sede is no setting of iid; it has clients, seed, test_fraction"),
        ("{name='shard'}", "partition.name is \"shard\", expected one of iid, .* Did you mean 'shards'"),
        ("{name='mixture',iid_fraction=0.1}", "partition.skewed is missing; mixture needs it"),
        ("{name='mixture',skewed='iid',iid_fraction=2}", "partition: iid_fraction is 2.0"),
        ("{name='dirichlet',sizes='even'}", 'partition.sizes is "even", expected one of "free", "equal" or a list'),
    ],
)  # fmt: skip
def test_a_partition_that_cannot_be_is_refused(table, message):
    with pytest.raises(ConfigError, match=message):
        _ = experiment.load(changes=[f"partition={table}"]).federated


def test_a_sweep_of_numbers_is_one_program_and_of_shapes_several():
    traced = experiment.load(
        changes=["sweep.algorithm.client.learning_rate=[0.1,0.2]", "seeds=[0,1]", "model=linear"]
    )
    assert len(traced.programs()) == 1 and len(traced.replicas()) == 4
    shaped = experiment.load(
        changes=[
            "sweep.local.batch_size=[10,20]",
            "sweep.algorithm.client.learning_rate=[0.1,0.2]",
            "model=linear",
        ]
    )
    programs = shaped.programs()
    assert [program.name for program in programs] == ["000-batch_size=10", "001-batch_size=20"]
    assert all(
        program.settings["sweep"] == {"algorithm.client.learning_rate": [0.1, 0.2]} for program in programs
    )
    # A share of coordinates decides how many are kept: it cannot be traced.
    static = experiment.load(
        changes=["algorithm.aggregate=[{name='top_k',share=0.1},'mean']", "sweep.algorithm.aggregate[0].share=[0.1,0.2]", "model=linear"]
    )  # fmt: skip
    assert len(static.programs()) == 2
