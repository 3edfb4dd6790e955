"""The examples run at toy size."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {
    "own_loop": ("mean squared error", "--rounds", "3"),
    "research_script": ("worst decile", "--rounds", "3"),
    "gradient_inversion": ("searched for, convolutional network", "--clients", "2", "--steps", "3"),
}
"""What each prints, and its arguments at toy size."""


def run(*arguments: str) -> str:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_runs(name):
    printed, *arguments = EXAMPLES[name]
    assert printed in run(str(ROOT / "examples" / f"{name}.py"), *arguments)


def test_no_example_is_forgotten():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


def test_the_reproduction_of_shakespeare_runs(tmp_path):
    """On a play of twelve roles, two of them too short."""
    speech = "\n".join(["But soft, what light through yonder window breaks?"] * 20)
    roles = [
        {"play": "p", "role": str(role), "speeches": [speech if role > 1 else "Ay\nme"]} for role in range(12)
    ]
    file = tmp_path / "roles.jsonl"
    file.write_text("\n".join(map(json.dumps, roles)))
    script = str(ROOT / "examples" / "reproductions" / "shakespeare.py")
    printed = run(
        script, str(file), *["--rounds", "2", "--every", "1", "--hidden", "8", "--test-windows", "20"]
    )
    assert "10 of 12 roles have at least 800 characters" in printed and "3,906 by role" in printed
    rows = [line.split() for line in printed.splitlines() if line.split()[0] in ("1", "2")]
    assert len(rows) == 2 and all(0 <= float(value) <= 1 for row in rows for value in row[2:])


def test_the_own_loop_learns():
    """A rule and a chain in somebody else's loop: the error falls by more than ten times."""
    lines = run(str(ROOT / "examples" / "own_loop.py"), "--rounds", "40").splitlines()
    first, last = (float(lines[i].split()[-1]) for i in (0, -1))
    assert last < first / 10


def test_the_own_loop_splits_or_uses_a_key(monkeypatch):
    """``split(key, n)[i]`` is ``fold_in(key, i)``: a key that is split and used draws noise from the clients' keys."""
    spec = importlib.util.spec_from_file_location("own_loop", ROOT / "examples" / "own_loop.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    split, aggregate, seen = jax.random.split, example.agg.run, {"split": set(), "used": []}

    def words(key) -> tuple[int, ...]:
        return tuple(jax.random.key_data(key).tolist())

    def recorded_split(key, num=2):
        # The rules and layers split keys of their own, under vmap.
        if not isinstance(key, jax.core.Tracer):
            seen["split"].add(words(key))
        return split(key, num)

    def recorded_run(*arguments, key, **options):
        seen["used"].append(words(key))
        with monkeypatch.context() as patched:
            patched.setattr(jax.random, "split", split)
            return aggregate(*arguments, key=key, **options)

    monkeypatch.setattr(jax.random, "split", recorded_split)
    monkeypatch.setattr(example.agg, "run", recorded_run)
    monkeypatch.setattr(sys, "argv", ["own_loop", "--rounds", "2"])
    with jax.disable_jit():
        example.main()
    assert len(set(seen["used"])) == 2
    assert not seen["split"] & set(seen["used"])
