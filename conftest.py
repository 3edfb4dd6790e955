"""What must happen before pytest imports anything else."""

import gc
import os
from importlib import metadata
from pathlib import Path

# Many tests, and the processes that they start, compile the same programs; all workers share them. It must be known before JAX
# is imported. JAX does not write its entries in one move: who reads half of one compiles after all (and is not warned, see
# pyproject.toml).
_CACHE = Path(__file__).parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# Most of the suite's time goes into compiling small programs. Two of the compiler's stages are left out, in half the
# time: its newer generator of fused loops, and LLVM's optimizations. LLVM gets a program in one piece, since
# the workers keep all cores busy. XLA's own passes, which fuse, simplify and choose forms, run as ever; the pages that
# people read first and the installed wheel are compiled as users have it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):  # later ones do not know it, and end
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )

# A layout that somebody measured on this machine is not for tests.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parent / ".pytest_cache" / "user")

# Before pytest collects doctests: a module that importlib mode met first would load twice.
import jax  # noqa: E402
import pytest  # noqa: E402

import fedjax_sim  # noqa: E402, F401

_FEW_MAPPINGS, _MANY_MAPPINGS = 30_000, 45_000
_SAME_PROGRAMS = {
    f"tests/laws/test_{name}.py"
    for name in ("compiled_once", "engines_agree", "layout", "noise_of_runs", "sweeps")
}
"""Laws of the same programs, which a second worker would have to trace again (``laws.members.trial``)."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A worker gets whole files, as ``--dist loadfile`` does, and one worker gets all of those that share their programs."""
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") != "loadfile":
        return None
    assert all((config.rootpath / file).exists() for file in _SAME_PROGRAMS), _SAME_PROGRAMS

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "laws" if file in _SAME_PROGRAMS else file

    return Scheduling(config, log)


def pytest_collection_finish():
    """Garbage is looked for less often: tracing makes millions of objects, most of which live; a twentieth of a law's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_make_parametrize_id(config, val, argname):
    """Bytes and control characters stay out of the names of tests: an argument that has them goes by its own name.

    Nobody can type them after ``-k``, and bytes that a library wrote may hold the time, so that two workers would
    collect different tests, which xdist refuses.
    """
    if isinstance(val, bytes) or (isinstance(val, str) and not val.isprintable()):
        return argname
    return None


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Lets go of compiled programs, between two files rather than within one.

    Every program maps memory a dozen times, and Linux gives a process 65,530 mappings: beyond them compiling crashes.
    """
    maps = Path("/proc/self/maps")
    count = maps.read_bytes().count(b"\n") if maps.exists() else 0
    leaves_file = nextitem is None or nextitem.path != item.path
    if count > (_FEW_MAPPINGS if leaves_file else _MANY_MAPPINGS):
        jax.clear_caches()
        gc.collect()
