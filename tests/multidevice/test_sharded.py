"""Laws 1, 5 and 7 for the sharded engine over 1, 2 and 8 devices, and streamed data on 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from laws.members import ELSEWHERE, MESHES, NAMES, TOLERANCE
from laws.noises import MECHANISMS

ROOT = Path(__file__).resolve().parents[2]


STREAMED = ("fedavg_shuffled", "fedavg_explicit_rows", "scaffold", "heterofl")
"""Keyed batches, rows from the plan, clients with state on a home device, groups with queues of their own."""


def rows(*arguments: str) -> list[dict]:
    """What ``run_laws.py`` prints, in a process with eight virtual devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={max(MESHES)}",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in (".", "kernels", "tests")),
        "PYTHONWARNINGS": "error",
    }
    done = subprocess.run(
        [sys.executable, ROOT / "tests/multidevice/run_laws.py", *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def measured():
    return {(row["name"], row["devices"]): row for row in rows()}


@pytest.fixture(scope="module")
def streamed():
    return {row["name"]: row for row in rows("streams", *STREAMED)}


@pytest.mark.multidevice
@pytest.mark.parametrize("devices", MESHES)
@pytest.mark.parametrize("name", NAMES)
def test_one_round_equals_the_oracle(measured, name, devices):
    """Sharded = sequential: server, client table and metrics, noise drawn once, one compilation for all cohorts."""
    row = measured[name, devices]
    assert row["error"] < TOLERANCE
    assert row["compilations"] == 1


@pytest.mark.multidevice
@pytest.mark.parametrize("name", STREAMED)
def test_data_too_large_for_a_device_stream_to_a_mesh(streamed, name):
    """By size alone, without ``stream``: the same state and metrics as resident data, bit for bit."""
    row = streamed[name]
    assert row["feeds"] == ["Resident", "Streamed"]
    assert row["bits_equal"] and row["metrics_equal"]
    assert row["compilations"] == 0  # after the first chunk


@pytest.mark.multidevice
def test_noise_is_the_same_on_any_devices():
    """Every mechanism's: the stated variance, and the draws of the sequential engine."""
    done = {(row["name"], row["devices"]) for row in rows("noises")}
    assert done == {(name, devices) for name in MECHANISMS for devices in MESHES}


@pytest.mark.multidevice
@pytest.mark.parametrize("devices", MESHES)
@pytest.mark.parametrize("name", ELSEWHERE)
def test_client_state_may_lie_elsewhere(measured, name, devices):
    """Bit for bit the same in the host's memory and on disk; each device has room for two cohorts of two of its home's clients, of a population of 40."""
    row = measured[f"elsewhere: {name}", devices]
    assert row["same"]
    assert row["rows"] == [4 * devices] * 2
