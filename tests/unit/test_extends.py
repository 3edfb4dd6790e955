"""``extends``: a configuration file that holds nothing but what it changes in another."""

import textwrap
from pathlib import Path

import pytest

from fedjax_sim import experiment

BASE = """
    rounds = 3
    seeds = [4]
    [algorithm]
    name = "fedavg"
    client = { name = "sgd", learning_rate = 0.5 }
    [cohort]
    name = "uniform"
    size = 7
"""


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(text))
    return file


def settings(folder: Path, text: str, base: str = BASE):
    write(folder / "base.toml", base)
    return experiment.load(
        write(folder / "mine.toml", 'extends = "base.toml"\n' + textwrap.dedent(text))
    ).settings


def test_what_is_not_changed_stays(tmp_path):
    assert settings(tmp_path, "") == experiment.load(tmp_path / "base.toml").settings


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    """As editors on Windows write it."""
    (tmp_path / "marked.toml").write_text("rounds = 9\n", encoding="utf-8-sig")
    assert experiment.load(tmp_path / "marked.toml").settings["rounds"] == 9


def test_a_line_changes_a_setting(tmp_path):
    found = settings(tmp_path, "rounds = 9")
    assert (found["rounds"], found["seeds"]) == (9, [4])
    assert "extends" not in found


def test_tables_are_merged_key_by_key(tmp_path):
    """However deep, and with dotted keys."""
    found = settings(tmp_path, "cohort.replace = true\nalgorithm.client.learning_rate = 0.25")
    assert found["cohort"] == {"name": "uniform", "size": 7, "replace": True}
    assert found["algorithm"]["client"] == {"name": "sgd", "learning_rate": 0.25, "nesterov": False}


@pytest.mark.parametrize("change", ['cohort = "all_clients"', 'cohort.name = "all_clients"'])
def test_another_component_brings_its_own_settings(tmp_path, change):
    assert settings(tmp_path, change)["cohort"] == {"name": "all_clients"}


def test_the_same_component_keeps_its_settings(tmp_path):
    assert settings(tmp_path, 'cohort = "uniform"')["cohort"]["size"] == 7
    found = settings(
        tmp_path,
        'algorithm = { name = "fedavg", server = "sgd" }',
        BASE + "\n[algorithm.server]\nname='sgd'\nlearning_rate=0.5",
    )
    assert (
        found["algorithm"]["client"]["learning_rate"] == found["algorithm"]["server"]["learning_rate"] == 0.5
    )


def test_a_name_alone_can_be_given_settings(tmp_path):
    found = settings(tmp_path, "model.hidden = [3]", 'model = "mlp"')
    assert found["model"] == {"name": "mlp", "hidden": [3]}


def test_lists_are_replaced(tmp_path):
    assert settings(tmp_path, "seeds = [1, 2]")["seeds"] == [1, 2]


def test_a_file_may_extend_one_that_extends_another(tmp_path):
    write(tmp_path / "middle.toml", 'extends = "base.toml"\nrounds = 5')
    found = settings(tmp_path, "seeds = [8]") | {}
    last = experiment.load(write(tmp_path / "last.toml", 'extends = "middle.toml"\ncohort.size = 2')).settings
    assert found["rounds"] == 3
    assert (last["rounds"], last["seeds"], last["cohort"]["size"]) == (5, [4], 2)


def test_changes_of_the_command_line_come_last(tmp_path):
    write(tmp_path / "base.toml", BASE)
    mine = write(tmp_path / "mine.toml", 'extends = "base.toml"\nrounds = 9')
    assert experiment.load(mine, ["rounds=11"]).settings["rounds"] == 11


def test_paths_begin_at_the_file_that_says_them(tmp_path):
    """A data source of one's own beside the base, named from another folder."""
    write(
        tmp_path / "kept" / "extended_source.py",
        """
        from pathlib import Path
        from fedjax_sim import data

        def load(folder: Path, other: Path = Path("else"), clients: int = 5) -> data.Federated:
            return data.digits(clients=clients)
        """,
    )
    write(
        tmp_path / "kept" / "base.toml",
        'paths = ["."]\ndata = { name = "extended_source:load", folder = "images" }',
    )
    near = experiment.load(write(tmp_path / "kept" / "near.toml", 'extends = "base.toml"\ndata.folder = "b"'))
    far = experiment.load(
        write(
            tmp_path / "mine" / "far.toml",
            'extends = "../kept/base.toml"\ndata.other = "more"\nrounds = 3',
        )
    )
    assert near.settings["data"]["folder"] == str(tmp_path / "kept" / "b")
    assert far.settings["paths"] == [str(tmp_path / "kept")]
    assert far.settings["data"]["folder"] == str(tmp_path / "kept" / "images")
    assert far.settings["data"]["other"] == str(tmp_path / "mine" / "more")
    assert far.federated.train.num_clients == 5


SOURCE = """
from pathlib import Path
from fedjax_sim import data

def load(folder: Path, clients: int = 5) -> data.Federated:
    return data.digits(clients=clients)
"""


def test_swept_paths_begin_at_the_file_too(tmp_path, monkeypatch):
    write(tmp_path / "kept" / "swept_source.py", SOURCE)
    write(
        tmp_path / "kept" / "base.toml",
        """
        paths = ["."]
        data = { name = "swept_source:load", folder = "a" }
        [sweep]
        "data.folder" = ["a", "b"]
        "data.clients" = [5, 6]
        """,
    )
    monkeypatch.chdir(tmp_path)
    here = experiment.load(tmp_path / "kept" / "base.toml")
    above = experiment.load(write(tmp_path / "mine" / "far.toml", 'extends = "../kept/base.toml"'))
    for found in (here, above):
        assert found.settings["sweep"]["data.folder"] == [str(tmp_path / "kept" / name) for name in "ab"]
        assert found.settings["sweep"]["data.clients"] == [5, 6]
        assert {program.settings["data"]["folder"] for program in found.programs()} == {
            str(tmp_path / "kept" / name) for name in "ab"
        }
    tables = experiment.load(
        tmp_path / "kept" / "base.toml", ['sweep={data=[{name="swept_source:load", folder="c"}, "digits"]}']
    )
    assert tables.settings["sweep"]["data"] == [
        {"name": "swept_source:load", "folder": str(tmp_path / "c")},
        "digits",
    ]


def test_paths_of_the_command_line_begin_where_it_is_run(tmp_path, monkeypatch):
    write(tmp_path / "kept" / "said_source.py", SOURCE)
    file = write(
        tmp_path / "kept" / "base.toml", 'paths = ["."]\ndata = { name = "said_source:load", folder = "a" }'
    )
    monkeypatch.chdir(tmp_path)
    found = experiment.load(file, ["data.folder=b", "sweep.data.folder=['c']"])
    assert found.settings["paths"] == [str(tmp_path / "kept")]
    assert found.settings["data"]["folder"] == str(tmp_path / "b")
    assert found.settings["sweep"] == {"data.folder": [str(tmp_path / "c")]}
    (tmp_path / "else").mkdir()
    write(tmp_path / "else" / "other_source.py", SOURCE)
    found = experiment.load(file, ["paths=['else']", "data={name='other_source:load', folder='d'}"])
    assert found.settings["paths"] == [str(tmp_path / "else")]
    assert found.settings["data"]["folder"] == str(tmp_path / "d")


def test_a_run_folder_holds_the_complete_settings(tmp_path):
    write(tmp_path / "base.toml", BASE)
    mine = write(tmp_path / "mine.toml", 'extends = "base.toml"\nrounds = 1\nmodel = "linear"')
    loaded = experiment.load(mine)
    outcome = experiment.run(loaded, tmp_path / "run")
    assert "extends" not in (outcome.folder / "config.toml").read_text()
    assert experiment.load(outcome.folder).settings == loaded.settings


# --- what is wrong -------------------------------------------------------------------------------------------


def refused(file: Path) -> str:
    with pytest.raises(experiment.ConfigError) as caught:
        experiment.load(file)
    return str(caught.value)


def test_a_file_that_extends_itself(tmp_path):
    message = refused(write(tmp_path / "mine.toml", 'extends = "mine.toml"'))
    assert message.startswith("extends: mine.toml extends mine.toml")


def test_files_that_extend_each_other(tmp_path):
    write(tmp_path / "b.toml", 'extends = "c.toml"')
    write(tmp_path / "c.toml", 'extends = "b.toml"')
    message = refused(write(tmp_path / "a.toml", 'extends = "b.toml"'))
    assert "b.toml extends c.toml extends b.toml" in message
    assert "a.toml" not in message


def test_a_base_that_is_missing(tmp_path):
    mine = write(tmp_path / "mine.toml", 'extends = "bas.toml"')
    assert refused(mine) == f"extends in {mine}: there is no file {tmp_path / 'bas.toml'}."


def test_a_base_that_is_no_toml(tmp_path):
    write(tmp_path / "base.toml", "rounds 3")
    mine = write(tmp_path / "mine.toml", 'extends = "base.toml"')
    assert refused(mine).startswith(f"extends in {mine}: {tmp_path / 'base.toml'} is not TOML")


@pytest.mark.parametrize("value", ["3", '""', '["base.toml"]'])
def test_extends_that_is_no_path(tmp_path, value):
    mine = write(tmp_path / "mine.toml", f"extends = {value}")
    assert refused(mine) == f"extends is {value}, expected the path of a TOML file, relative to {mine}."


def test_wrong_paths_are_refused_as_ever(tmp_path):
    write(tmp_path / "kept" / "base.toml", "paths = 3")
    assert refused(write(tmp_path / "mine.toml", 'extends = "kept/base.toml"')).startswith("paths is 3")
