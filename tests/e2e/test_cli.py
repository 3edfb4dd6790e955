"""``fedjax-sim run``: the run folder, what is shown, what is refused, and how a run ends early."""

from __future__ import annotations

import json
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
from typer.testing import CliRunner

from fedjax_sim import tracking
from fedjax_sim.cli import app
from fedjax_sim.cli._run import ALGORITHMS, MODELS

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["run", "--clients", "8", "--cohort", "3", "--model", "linear"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Default run folders land in the test's folder, and JAX's configuration stays as the test process has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ.get("JAX_COMPILATION_CACHE_DIR", ""))
    monkeypatch.setenv("COLUMNS", "200")


def invoke(*arguments: str):
    """Runs the command in this process."""
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def environment(cache: Path) -> dict[str, str]:
    own = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]), "XDG_CACHE_HOME": str(cache)}
    return {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"} | own


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fedjax_sim", *arguments]


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_a_run_leaves_its_metrics_and_a_summary(tmp_path):
    result = invoke(*SMALL, "--rounds", "5", "--evaluate-every", "2", "--out", "mine")
    assert result.exit_code == 0, result.stderr

    metrics, whole = rows(tmp_path / "mine"), summary(tmp_path / "mine")
    assert [row["round"] for row in metrics] == [0, 1, 2, 3, 4]
    assert [row["round"] for row in metrics if "eval/accuracy" in row] == [1, 3, 4]
    assert metrics[-1]["loss"] < metrics[0]["loss"]

    assert (whole["status"], whole["rounds"], whole["evaluated_after"]) == ("completed", 5, 5)
    assert whole["final"] == metrics[-1]
    assert whole["settings"]["clients"] == whole["data"]["clients"] == 8
    assert whole["parameters"] == 650
    assert whole["costs"]["examples"] > 0 and 0 < whole["costs"]["step_occupancy"] <= 1

    for text in ("test accuracy", "worst tenth of the clients", "GFLOP/s", "run folder  mine"):
        assert text in result.stdout
    assert f"{whole['final']['eval/accuracy']:.1%}" in result.stdout
    assert re.search(r"^5/5  loss .* test accuracy .* examples/s$", result.stderr, re.MULTILINE)


def test_quiet_prints_the_folder_alone(tmp_path):
    result = invoke(*SMALL, "--rounds", "1", "--quiet")
    (folder,) = (tmp_path / "runs").iterdir()
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"runs/{folder.name}\n", "")
    assert re.fullmatch(r"\d{8}-\d{6}-fedavg-digits", folder.name)


def test_the_seed_makes_the_run(tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert invoke(*SMALL, "--rounds", "2", "--seed", seed, "--out", name, "--quiet").exit_code == 0
    text = {name: (tmp_path / name / "metrics.jsonl").read_text() for name in "abc"}
    assert text["a"] == text["b"] != text["c"]


def test_a_run_folder_is_never_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    result = invoke(*SMALL, "--rounds", "1", "--out", "mine")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: the run folder mine exists already; name a new one with --out, or leave --out out.\n"
    )
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--algorithm", "fedavgg"],
            "'fedavgg' is not known, expected one of fedavg, .*Did you mean 'fedavg'?",
        ),
        (["--model", "gpt"], "'gpt' is not known, expected one of mlp, linear, cnn"),
        (["--rounds", "0"], "--rounds"),
        (["--rounds", "many"], "--rounds"),
        (["--lr", "-1"], "--lr"),
        (["--lanes", "0"], "'0' is not a lane count, expected 'auto' or a number above 0"),
        (["--cohort", "9"], "error: cohort size is 9, but the population has 8 clients"),
        (["--alpha", "-1"], "error: alpha is -1.0, expected a finite number above 0"),
        (["--data", "digit"], "error: no data source is called 'digit', .* Did you mean 'digits'?"),
        (["--data", "npz:nowhere.npz"], "error: data source 'npz' takes no option 'clients'"),
        (["--data", "npz"], "error: data source"),
        (["--out", "file/run"], "error: .*file/run"),
        (["--devices", "99"], "error: devices is 99, but JAX sees|error: .*jax_num_cpu_devices"),
        (["--round", "1"], "No such option: --round"),
    ],
)
def test_bad_usage_is_one_message_and_exit_code_2(tmp_path, options, message):
    (tmp_path / "file").touch()
    result = invoke(*SMALL, *options)
    shown = re.sub(r"[│╭╮╰╯─\s]+", " ", result.stderr)
    assert result.exit_code == 2
    assert re.search(message.replace("?", r"\?"), shown), shown
    assert "Traceback" not in shown and result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "a refused run leaves no folder"


def test_a_model_that_is_not_finite_fails_the_run(tmp_path):
    result = invoke("run", "--rounds", "3", "--lr", "1e30", "--out", "mine")
    assert result.exit_code == 1
    assert "error: the model is not finite after round" in result.stderr
    assert "rounds are in mine" in result.stderr
    whole = summary(tmp_path / "mine")
    assert whole["status"] == "failed" and whole["reason"].startswith("error: the model is not finite")
    assert whole["rounds"] == len(rows(tmp_path / "mine")) < 3


def test_a_full_disk_fails_the_run(tmp_path, monkeypatch):
    write = tracking.JsonLines.write

    def full(self, row):
        if row["round"] == 1:
            raise OSError(28, "No space left on device")
        write(self, row)

    monkeypatch.setattr(tracking.JsonLines, "write", full)
    result = invoke(*SMALL, "--rounds", "3", "--out", "mine")
    assert result.exit_code == 1 and "No space left on device" in result.stderr
    assert summary(tmp_path / "mine")["status"] == "failed"
    assert len(rows(tmp_path / "mine")) == 1


def test_data_without_a_test_part_is_not_evaluated(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(20, 4)).astype(np.float32)
    np.savez("toy.npz", x=x, y=np.arange(20) % 2, client=np.arange(20) % 4)
    result = invoke("run", "--data", "npz:toy.npz", "--cohort", "2", "--rounds", "2", "--out", "mine")
    assert result.exit_code == 0, result.stderr
    assert "test accuracy" not in result.stdout
    assert all(not name.startswith("eval/") for row in rows(tmp_path / "mine") for name in row)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_runs(tmp_path, algorithm):
    result = invoke(*SMALL, "--rounds", "1", "--algorithm", algorithm, "--out", "mine")
    assert result.exit_code == 0, result.stderr
    assert summary(tmp_path / "mine")["settings"]["algorithm"] == algorithm


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(set(MODELS) - {"linear"}))
def test_every_model_runs(model):
    assert invoke(*SMALL, "--rounds", "1", "--model", model).exit_code == 0


def test_version():
    import fedjax_sim

    assert invoke("--version").stdout == f"fedjax-sim {fedjax_sim.__version__}\n"


def test_a_process_without_terminal_trains_on_two_cores(tmp_path, cache):
    arguments = command(*SMALL, "--rounds", "2", "--devices", "2", "--lanes", "1", "--out", "mine")
    done = subprocess.run(arguments, env=environment(cache), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "mine")["environment"]["devices"] == 2
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


def interrupted(tmp_path: Path, cache: Path, *signals: signal.Signals) -> tuple[int, str]:
    """Exit code and messages of a long run that gets signals once it has written a round."""
    # Programs started in the background of a shell without job control are told to ignore Ctrl-C.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from fedjax_sim.cli import main; main()"
    arguments = [*SMALL, "--rounds", "1000000", "--evaluate-every", "10", "--out", "mine"]
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
    return process.returncode, errors


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "a request to terminate")]
)
def test_a_signal_ends_a_run_behind_a_whole_round(tmp_path, cache, number, reason):
    code, errors = interrupted(tmp_path, cache, number)
    assert code == 130, errors
    assert f"stopped by {reason}" in errors and "Traceback" not in errors
    done = rows(tmp_path / "mine")
    assert [row["round"] for row in done] == list(range(len(done))) and done
    whole = summary(tmp_path / "mine")
    assert (whole["status"], whole["rounds"]) == ("interrupted", len(done))
    assert whole["final"] == done[-1]
    assert f"{len(done)} of 1000000 rounds are in mine" in errors


def test_a_second_ctrl_c_ends_a_run_at_once(tmp_path, cache):
    code, errors = interrupted(tmp_path, cache, signal.SIGINT, signal.SIGINT)
    assert code == 130, errors
    assert "stopped by Ctrl-C" in errors and "Traceback" not in errors
    done = rows(tmp_path / "mine")
    assert [row["round"] for row in done] == list(range(len(done))) and done
    assert summary(tmp_path / "mine")["status"] == "interrupted"


def test_importing_the_library_leaves_the_command_line_out():
    code = "import sys, fedjax_sim; print([m for m in ('typer', 'fedjax_sim.cli') if m in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment(Path()), capture_output=True, text=True, timeout=120
    )
    assert shown.stdout.strip() == "[]", shown.stderr
