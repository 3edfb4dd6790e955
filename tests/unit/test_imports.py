"""What ``import fedjax_sim`` loads, and that the core runs where the optional packages are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

HEAVY = [
    "tensorflow", "tensorflow_datasets", "orbax", "matplotlib", "sklearn", "tensorboard", "wandb", "pyarrow", "h5py", "datasets",
]  # fmt: skip
OPTIONAL = [*HEAVY, "typer", "dp_accounting", "pandas"]  # rich comes with flax


def run_python(code: str) -> str:
    # Without a compilation cache, whose files JAX opens with whatever is installed.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_no_heavy_package():
    heavy = [*HEAVY, "scipy.special", "scipy.optimize"]
    loaded = run_python(f"import sys, fedjax_sim; print([name for name in {heavy} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_pallas_is_imported_where_it_is_dispatched_to():
    code = """
import sys, jax.numpy as jnp
from fedjax_sim_kernels import backends, order
for backend in ("cpu", "other", "nvidia"):
    backends.current = lambda: backend
    order.median(jnp.ones((4, 9)), jnp.ones(4, bool))
    print("jax.experimental.pallas" in sys.modules)
"""
    assert run_python(code).split() == ["False", "False", "True"]


ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}: blocked by the test", name=name)

sys.meta_path.insert(0, Absent())
"""

WITHOUT_OPTIONAL = f"""
{ABSENT.format(names=OPTIONAL)}
import jax, numpy as np, optax
import fedjax_sim as fs
from fedjax_sim import aggregation as agg

x = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
data = fs.ClientData({{"x": x, "y": np.arange(12) % 2}}, [0, 5, 6, 12], ["ann", "bo", "cy"])
task = fs.tasks.classification(fs.models.linear(classes=2))
private = agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(0.1))
algorithm = fs.algorithms.fedavg(task, optax.sgd(0.1), aggregate=private)
for engine in (fs.engines.sequential(), fs.engines.lanes(2), fs.engines.sharded(fs.engines.client_mesh(1), lanes=2)):
    sim = fs.Simulation(algorithm, data, cohort=fs.cohorts.uniform(2), local=fs.LocalWork(batch_size=2), engine=engine)
    state, history = sim.run(sim.init(seed=0), rounds=2)
    print(round(sim.evaluate(state, data).examples["loss"], 4))

variables = task.init(jax.random.key(0), {{"x": x[:1]}})
update = fs.rules.run(fs.rules.local_sgd(task, optax.sgd(0.1)), variables, {{"x": x[None], "y": data.columns["y"][None]}}, jax.random.key(1))
total, _, _ = agg.run(private, jax.tree.map(lambda v: v[None], update), key=jax.random.key(2))
print(jax.tree.all(jax.tree.map(lambda v: bool(np.isfinite(v).all()), total)))
"""


def test_the_core_runs_with_jax_flax_optax_and_numpy_alone():
    """Data, tasks, rules, aggregation, all engines and evaluation, with every optional package missing."""
    *losses, finite = run_python(WITHOUT_OPTIONAL).split()
    assert finite == "True"
    assert len(losses) == 3 and len(set(losses)) == 1


BENCHMARKS_ON_ACCELERATORS = ("rounds", "kernels", "published", "scaling")


def test_benchmarks_of_accelerators_need_no_more_either():
    """An image for an accelerator may lack all the rest, the command line's packages included."""
    absent = ABSENT.format(names=[*OPTIONAL, "tomli_w"])
    code = "import importlib\nfrom fedjax_sim.bench import BENCHMARKS\n" + "".join(
        f"assert callable(importlib.import_module('fedjax_sim.bench._{name}').main) and {name!r} in BENCHMARKS\n"
        for name in BENCHMARKS_ON_ACCELERATORS
    )
    run_python(absent + code)
