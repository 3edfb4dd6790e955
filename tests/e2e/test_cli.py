"""The command line: what is shown, what is refused, exit codes, and how a run ends early."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from e2e.command_line import invoke
from rich.console import Console

from fedjax_sim import experiment, tracking
from fedjax_sim.bench import BENCHMARKS
from fedjax_sim.cli import _screen

pytestmark = pytest.mark.usefixtures("own_folder")

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ["data.clients=8", "cohort.size=3", "model=linear", "plots=false"]
SMALL = ["run", *(item for setting in SETTINGS for item in ("--set", setting))]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def environment(cache: Path) -> dict[str, str]:
    own = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]), "XDG_CACHE_HOME": str(cache)}
    return {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"} | own


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fedjax_sim", *arguments]


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


# --- run -----------------------------------------------------------------------------------------------------


def test_a_run_shows_what_it_does_and_leaves_a_folder(tmp_path):
    result = invoke(*SMALL, "--rounds", "5", "--set", "evaluation.every=2", "--out", "mine")
    assert result.exit_code == 0, result.stderr
    whole = summary(tmp_path / "mine")
    assert (whole["status"], whole["rounds"]) == ("completed", 5)
    for text in (
        "fedavg trains linear (650 parameters) on digits", "8 clients, cohort: uniform, size 3", "test accuracy",
        "worst tenth of the clients", "FLOP/s", "run folder  mine",
        "float32   parameters", "float32   products at default precision",
    ):  # fmt: skip
        assert text in result.stdout
    assert f"{whole['replicas'][0]['last']['eval/accuracy']:.1%}" in result.stdout
    assert re.search(r"^5/5  loss .* test accuracy .* examples/s$", result.stderr, re.MULTILINE)


def test_quiet_prints_the_folder_alone(tmp_path):
    result = invoke(*SMALL, "--rounds", "1", "--quiet")
    (folder,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "latest")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"runs/{folder.name}\n", "")
    assert re.fullmatch(r"\d{8}-\d{6}-fedavg-digits", folder.name)


def test_json_is_for_scripts():
    result = invoke(*SMALL, "--rounds", "2", "--seeds", "0:2", "--json", "--out", "mine")
    content = json.loads(result.stdout)
    assert (content["folder"], content["status"]) == ("mine", "completed") and result.stderr == ""
    assert [replica["seed"] for replica in content["replicas"]] == [0, 1]


def test_several_seeds_show_mean_and_deviation():
    result = invoke(*SMALL, "--rounds", "2", "--seeds", "3,5", "--out", "mine")
    assert "2 times at once" in result.stdout and "mean ± std over 2 seeds" in result.stdout
    assert re.search(r"test accuracy +\d+\.\d ± \d+\.\d %", result.stdout), result.stdout


def test_the_seed_makes_the_run(tmp_path):
    for name, seeds in (("a", "1"), ("b", "1"), ("c", "2")):
        assert invoke(*SMALL, "--rounds", "2", "--seeds", seeds, "--out", name, "--quiet").exit_code == 0
    text = {name: (tmp_path / name / "metrics.jsonl").read_text() for name in "abc"}
    assert text["a"] == text["b"] and rows(tmp_path / "a")[0]["loss"] != rows(tmp_path / "c")[0]["loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "algorithm.name=fedavgg"], "error: algorithm.name is \"fedavgg\", .*Did you mean 'fedavg'?"),
        (["--set", "model=gpt"], 'error: model.name is "gpt", expected one of linear, mlp, cnn'),
        (["--rounds", "0"], "--rounds"),
        (["--rounds", "many"], "--rounds"),
        (["--seeds", "5:5"], "'5:5' names no seed, expected a:b"),
        (["--set", "algorithm.client.learning_rate=-1", "--set", "cohort.size=9"], "error: cohort size is 9"),
        (["--set", "engine.lanes=0"], "error: engine: lanes is 0"),
        (["--set", "data.alpha=-1"], "error: data: alpha is -1.0, expected a finite number above 0"),
        (["--set", "data.name=digit"], "error: data.name is \"digit\", .*Did you mean 'digits'?"),
        (["--set", "data={name='npz',path='nowhere.npz'}"], "error: data: .*nowhere.npz does not exist"),
        (["--set", "rounds"], "error: \"rounds\" is no setting, expected key=value"),
        (["--out", "file/run"], "error: .*file/run"),
        (["--out", "there"], "error: the run folder there exists already"),
        (["--set", "engine={name='sharded',devices=99}"], "error: .*devices is 99, but JAX sees|error: .*jax_num_cpu_devices"),
        (["nowhere.toml"], "error: there is no file nowhere.toml"),
        (["--round", "1"], "No such option: --round"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_message_and_exit_code_2(tmp_path, options, message):
    (tmp_path / "file").touch()
    (tmp_path / "there").mkdir()
    result = invoke(*SMALL, *options)
    shown = re.sub(r"[│╭╮╰╯─\s]+", " ", result.stderr)
    assert result.exit_code in ((1, 2) if "file/run" in message else (2,)), shown
    assert re.search(message.replace("?", r"\?"), shown), shown
    assert "Traceback" not in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"], (
        "a refused run leaves no folder"
    )


def test_a_model_that_is_not_finite_fails_the_run(tmp_path):
    result = invoke(
        *SMALL, "--set", "model=mlp", "--set", "algorithm.client.learning_rate=1e30", "--out", "mine"
    )
    assert result.exit_code == 1
    assert "error: the model is not finite after round" in result.stderr and "are in mine" in result.stderr
    assert summary(tmp_path / "mine")["status"] == "failed"


def test_a_full_disk_fails_the_run(tmp_path, monkeypatch):
    def full(self, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracking.JsonLines, "write", full)
    result = invoke(*SMALL, "--rounds", "3", "--out", "mine")
    assert result.exit_code == 1 and "No space left on device" in result.stderr
    assert summary(tmp_path / "mine")["status"] == "failed"


def test_a_write_that_the_system_refuses_fails_the_run_and_it_goes_on_later(tmp_path):
    """No patch: the process may not write files beyond 20 kB, so a row of the metrics is refused in the middle."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from fedjax_sim.cli import main; main()"
    )
    arguments = [*SMALL, "--rounds", "100", "--set", "checkpoints.every=10", "--out", "mine"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(tmp_path) | {"JAX_COMPILATION_CACHE_DIR": ""},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1 and "File too large" in done.stderr, done.stderr
    failed = summary(tmp_path / "mine")
    assert failed["status"] == "failed" and "File too large" in failed["reason"] and failed["rounds"] > 0
    assert invoke("resume", "mine", "--quiet").exit_code == 0
    assert invoke(*arguments[:-1], "whole", "--quiet").exit_code == 0
    whole = (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert len(whole) > 20_000 and (tmp_path / "mine" / "metrics.jsonl").read_text() == whole


def test_data_without_a_test_part_is_not_evaluated(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(20, 4)).astype(np.float32)
    np.savez("toy.npz", x=x, y=np.arange(20) % 2, client=np.arange(20) % 4)
    changes = ["data={name='npz',path='toy.npz'}", "cohort.size=2", "model=linear", "plots=false"]
    options = [item for change in changes for item in ("--set", change)]
    result = invoke("run", *options, "--rounds", "2", "--out", "mine")
    assert result.exit_code == 0, result.stderr
    assert "test accuracy" not in result.stdout
    assert all(not name.startswith("eval/") for row in rows(tmp_path / "mine") for name in row)


CHOICES = {
    "fedprox": "algorithm.mu=0.01", "scaffold": None, "mime": None, "ifca": "algorithm.models=2", "fedsgd": None,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", experiment.names("algorithms"))
def test_every_algorithm_runs(tmp_path, algorithm):
    needs = experiment.find("algorithms", algorithm, "").parameters
    table: dict = {"name": algorithm}
    for name, parameter in needs.items():
        if parameter.required:
            table[name] = {
                "client": "{name='sgd',learning_rate=0.1}", "optimizer": "{name='sgd',learning_rate=0.1}",
                "models": "2",
            }.get(name, "0.1")  # fmt: skip
    written = ",".join(f"{key}={value if key != 'name' else repr(value)}" for key, value in table.items())
    result = invoke(*SMALL, "--rounds", "1", "--set", f"algorithm={{{written}}}", "--out", "mine")
    assert result.exit_code == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_every_model_of_small_images_runs(model):
    assert invoke(*SMALL, "--rounds", "1", "--set", f"model={model}").exit_code == 0


# --- resume, sweep -------------------------------------------------------------------------------------------


def test_resume_goes_on_and_says_what_may_not_change(tmp_path):
    assert invoke(*SMALL, "--rounds", "2", "--out", "mine", "--quiet").exit_code == 0
    result = invoke("resume", "mine", "--rounds", "4", "--quiet")
    assert (result.exit_code, result.stdout) == (0, "mine\n"), result.stderr
    assert len(rows(tmp_path / "mine")) == 4
    result = invoke("resume", "mine", "--set", "cohort.size=2")
    assert result.exit_code == 2 and "cohort.size: 3 in the run folder, 2 now" in result.stderr
    assert invoke("resume", "nowhere").exit_code == 2


def test_sweep_needs_a_grid_and_shows_every_setting(tmp_path):
    small = ["sweep", *SMALL[1:], "--rounds", "2"]
    assert "there is nothing to sweep" in invoke(*small).stderr
    Path("empty.toml").write_text("[sweep]\n")
    assert "there is nothing to sweep" in invoke("sweep", "empty.toml").stderr
    result = invoke(
        *small, "--grid", "algorithm.client.learning_rate=[0.1,0.2]", "--seeds", "0:2", "--out", "s"
    )
    assert result.exit_code == 0, result.stderr
    assert "algorithm.client.learning_rate = 0.2" in result.stdout and len(rows(tmp_path / "s")) == 8


# --- results -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    changes = [*SETTINGS, "rounds=4", "evaluation.every=2", "seeds=[0,1]"]
    experiment.run(experiment.load(changes=changes), folder)
    return folder


def test_evaluate(run_folder):
    result = invoke("evaluate", str(run_folder), "--personalised")
    assert result.exit_code == 0, result.stderr
    for text in ("eval, seed 0, after 4 rounds", "Jain's index", "personalised, seed 1", "mean gain"):
        assert text in result.stdout
    content = json.loads(invoke("evaluate", str(run_folder), "--json").stdout)
    assert content[1]["seed"] == 1
    assert (
        content[1]["eval"]["examples"]["accuracy"]
        == summary(run_folder)["replicas"][1]["last"]["eval/accuracy"]
    )
    assert invoke("evaluate", "nowhere").exit_code == 2


def test_evaluate_says_nothing_but_its_results(run_folder, caplog):
    """What orbax logs about a folder that is only read concerns nobody."""
    logging.getLogger("absl").addHandler(caplog.handler)
    try:
        result = invoke("evaluate", str(run_folder))
    finally:
        logging.getLogger("absl").removeHandler(caplog.handler)
    assert result.exit_code == 0 and not result.stderr
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_plot(run_folder, tmp_path):
    result = invoke("plot", str(run_folder))
    assert result.exit_code == 0, result.stderr
    assert all(Path(line).stat().st_size > 1000 for line in result.stdout.splitlines())
    result = invoke(
        "plot", str(run_folder), str(run_folder), "-y", "eval/accuracy", "-x", "bytes", "--out", "mine.svg"
    )
    assert result.exit_code == 0 and (tmp_path / "mine.svg").read_text().startswith("<?xml")
    result = invoke("plot", str(run_folder), "-y", "eval/acuracy")
    assert result.exit_code == 2 and "eval/accuracy" in result.stderr


def test_report(run_folder, tmp_path):
    result = invoke("report", str(run_folder), "--out", "mine.html")
    assert result.exit_code == 0, result.stderr
    assert "<html" in (tmp_path / "mine.html").read_text()
    assert invoke("report", "nowhere").exit_code == 2


# --- what there is -------------------------------------------------------------------------------------------


def test_list(tmp_path):
    result = invoke("list", "algorithms")
    assert (
        result.exit_code == 0 and "scaffold" in result.stdout and "Karimireddy et al. 2020" in result.stdout
    )
    content = json.loads(invoke("list", "transforms", "--json").stdout)
    assert content["gaussian_noise"]["settings"]["noise_multiplier"]["type"] == "a number"
    assert invoke("list", "algorithm").exit_code == 2


def test_new_writes_a_file_that_runs(tmp_path):
    assert invoke("new", "mine.toml").exit_code == 0
    assert invoke("new", "mine.toml").exit_code == 2
    assert experiment.load(tmp_path / "mine.toml").settings == experiment.load().settings


def test_bench_calls_the_benchmark_and_names_what_there_is(monkeypatch):
    seen = []
    monkeypatch.setitem(BENCHMARKS, "rounds", seen.append)
    assert invoke("bench", "rounds", "--", "--cores", "1").exit_code == 0 and seen == [["--cores", "1"]]
    result = invoke("bench", "lanes")
    assert result.exit_code == 2 and "there is no benchmark 'lanes', expected one of rounds" in result.stderr


def test_version():
    import fedjax_sim

    assert invoke("--version").stdout == f"fedjax-sim {fedjax_sim.__version__}\n"


# --- processes -----------------------------------------------------------------------------------------------


def test_a_process_without_terminal_trains_on_two_cores(tmp_path, cache):
    arguments = command(
        *SMALL, "--rounds", "2", "--set", "engine={name='sharded',devices=2,lanes=1}", "--out", "mine"
    )
    done = subprocess.run(arguments, env=environment(cache), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    about = json.loads((tmp_path / "mine" / "environment.json").read_text())
    assert len(about["hardware"]["devices"]) == 2
    assert "\x1b" not in done.stdout + done.stderr and "\r" not in done.stdout + done.stderr
    assert any((cache / "fedjax-sim" / "jax").iterdir()), "what was compiled is kept for the next run"


def test_a_terminal_shows_a_bar(tmp_path, cache):
    ours, theirs = pty.openpty()
    arguments = command(*SMALL, "--rounds", "20", "--out", "mine")
    with subprocess.Popen(
        arguments, env=environment(cache) | {"TERM": "xterm"}, stdout=theirs, stderr=theirs, stdin=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        # The terminal's end of file is an error on Linux and an empty read elsewhere.
        while True:
            try:
                shown += (piece := os.read(ours, 4096))
            except OSError:
                break
            if not piece:
                break
    os.close(ours)
    text = shown.decode()
    assert process.returncode == 0, text
    assert "compiling" in text and "━" in text and "20/20" in text and "left" in text
    assert "run folder  mine" in text


def interrupted(tmp_path: Path, cache: Path, *signals: signal.Signals, before: str = "") -> tuple[int, str]:
    """Exit code and messages of a long run that gets signals once it has written a round."""
    # Programs started in the background of a shell without job control are told to ignore Ctrl-C.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += f"{before}\nfrom fedjax_sim.cli import main\nmain()"
    arguments = [*SMALL, "--rounds", "1000000", "--out", "mine"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "mine" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    try:
        while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None:
            assert time.monotonic() < deadline, "no round was written"
            time.sleep(0.1)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.02)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    return process.returncode, errors


@pytest.mark.parametrize(
    ("number", "reason", "expected"),
    [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "a request to terminate", 143)],
)
def test_a_signal_ends_a_run_with_a_checkpoint_and_says_how_to_go_on(
    tmp_path, cache, number, reason, expected
):
    code, errors = interrupted(tmp_path, cache, number)
    assert code == expected, errors
    done = rows(tmp_path / "mine")
    assert [row["round"] for row in done] == list(range(len(done))) and done
    assert (
        f"stopped by {reason}; {len(done)} of 1000000 rounds are in mine" in errors
        and "Traceback" not in errors
    )
    assert "go on with it: fedjax-sim resume mine" in errors
    whole = summary(tmp_path / "mine")
    assert (whole["status"], whole["rounds"]) == ("interrupted", len(done))
    assert str(len(done)) in {path.name for path in (tmp_path / "mine" / "checkpoints").iterdir()}


def test_a_second_ctrl_c_ends_a_run_at_once(tmp_path, cache):
    code, errors = interrupted(tmp_path, cache, signal.SIGINT, signal.SIGINT)
    assert code == 130, errors
    assert "stopped" in errors and "fedjax-sim resume mine" in errors and "Traceback" not in errors
    done = rows(tmp_path / "mine")
    assert [row["round"] for row in done] == list(range(len(done))) and done
    assert summary(tmp_path / "mine")["status"] == "interrupted"


def test_a_second_request_to_terminate_ends_a_run_at_once(tmp_path, cache):
    code, errors = interrupted(tmp_path, cache, signal.SIGTERM, signal.SIGTERM)
    assert code == 143 and "fedjax-sim resume mine" in errors and "Traceback" not in errors, errors


def test_a_run_that_waits_for_ever_after_a_second_signal_is_ended(tmp_path, cache):
    waits = """
import threading
from fedjax_sim.checkpoint import Store
def wait(*_):
    try:
        threading.Event().wait()
    finally:
        threading.Event().wait()
Store.__exit__ = wait
"""
    code, errors = interrupted(tmp_path, cache, signal.SIGTERM, signal.SIGTERM, before=waits)
    assert code == 143 and "it did not stop by itself\ngo on with it: fedjax-sim resume mine" in errors, (
        errors
    )


def test_personalised_results_are_those_of_all_seeds(tmp_path):
    found = experiment.load(
        changes=["data.clients=6", "cohort.size=3", "model=linear", "rounds=2", "seeds=[0,1,2]",
                 "evaluation.personalised=true", "plots=false"]
    )  # fmt: skip
    outcome = experiment.run(found, tmp_path / "a")
    means = [100 * result.after.clients["accuracy"]["mean"] for result in outcome.personalised]
    console = Console(width=200)
    with console.capture() as shown:
        console.print(_screen.table(outcome))
    assert f"{np.mean(means):.1f} ± {np.std(means, ddof=1):.1f} %" in shown.get(), (means, shown.get())
    assert len(set(means)) > 1


def test_importing_the_library_leaves_the_command_line_out():
    code = "import sys, fedjax_sim; print([m for m in ('typer', 'fedjax_sim.cli') if m in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment(Path()), capture_output=True, text=True, timeout=120
    )
    assert shown.stdout.strip() == "[]", shown.stderr


# --- tune ----------------------------------------------------------------------------------------------------


def test_tune_says_which_number_of_devices_and_lanes_is_the_fastest(cache, tmp_path):
    """In a process of its own, which gives itself two devices; a later run takes the lanes from where they are kept."""
    own = environment(cache) | {
        "XDG_CACHE_HOME": str(tmp_path / "own"),
        "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
    }
    tune = command("tune", *SMALL[1:], "--set", "cohort.size=2", "--devices", "2", "--repeats", "1")
    done = subprocess.run(tune, env=own, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert shown[0] == "1 device" and "2 devices" in shown
    assert "2 devices are worth " in done.stdout and "kept in " in done.stdout
    kept = json.loads((tmp_path / "own" / "fedjax-sim" / "layouts.json").read_text())
    assert len(kept) == 2, "one for each number of devices"
