"""Imports only go down the floors of the house (DESIGN section 4)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, KERNELS = "fedjax_sim", "fedjax_sim_kernels"

FLOORS = [
    {KERNELS},
    {"_src"},
    {"data", "metrics"},
    {"tasks", "models"},
    {"rules", "aggregation", "privacy"},
    {"engines", "algorithms", "evaluation", "personalisation", "history"},
    {
        "simulate",
        "_arguments",
        "_background",
        "_books",
        "_client_folder",
        "_client_item",
        "_client_layout",
        "_client_rows",
        "_client_state",
        "_client_store",
        "_description",
        "_ends",
        "_feed",
        "_inside",
        "_priced",
        "_runner",
        "_tuning",
        "checkpoint",
        "tracking",
    },
    {"cli", "experiment", "bench", "plots", "report"},
    {"__main__"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

MODULES = sorted((ROOT / PACKAGE).rglob("*.py")) + sorted((ROOT / "kernels").rglob("*.py"))


def module_name(path: Path) -> str:
    """``fedjax_sim/rules/_run.py`` is ``fedjax_sim.rules._run``."""
    base = ROOT / "kernels" if (ROOT / "kernels") in path.parents else ROOT
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool) -> set[str]:
    """Full names of all that a module imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, base] if base else parts)
            # `from fedjax_sim import rules` imports the module fedjax_sim.rules.
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == PACKAGE else {base}
    return found


def place(name: str) -> str | None:
    """What stands on a floor: the subpackage of a module of ours, ``None`` for everybody else's."""
    parts = name.split(".")
    if parts[0] == KERNELS:
        return KERNELS
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else None


def climbs(source: str, module: str, is_package: bool = False) -> list[str]:
    """The imports of a module that go up, or to something without a floor."""
    own, wrong = place(module), []
    for name in sorted(imports(source, module, is_package)):
        if name == PACKAGE:
            wrong.append("fedjax_sim itself, which imports everything")
            continue
        target = place(name)
        if target is None:
            continue
        if target not in FLOOR:
            wrong.append(
                f"{name}, which has no floor: place {target!r} on one in FLOORS (and in DESIGN section 4)"
            )
        elif FLOOR[target] > FLOOR[own]:
            wrong.append(f"{name} on floor {FLOOR[target]}")
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=lambda path: module_name(path))
def test_imports_go_down(path):
    module = module_name(path)
    if module == PACKAGE:
        return  # the front door shows all floors
    own = place(module)
    assert own in FLOOR, f"{module} has no floor: place {own!r} on one in FLOORS (and in DESIGN section 4)"
    wrong = climbs(path.read_text(), module, path.name == "__init__.py")
    assert not wrong, f"{module} is on floor {FLOOR[own]} and imports {'; '.join(wrong)}"


@pytest.mark.parametrize("path", [p for p in MODULES if module_name(p).startswith(KERNELS)], ids=module_name)
def test_kernels_know_jax_alone(path):
    allowed = {"jax", KERNELS} | sys.stdlib_module_names
    names = imports(path.read_text(), module_name(path), path.name == "__init__.py")
    assert {name.split(".")[0] for name in names} <= allowed


@pytest.mark.parametrize(
    ("source", "module", "message"),
    [
        ("import fedjax_sim.simulate", "fedjax_sim.data.plans", "fedjax_sim.simulate on floor 6"),
        ("from fedjax_sim import engines", "fedjax_sim.rules._run", "fedjax_sim.engines on floor 5"),
        (
            "def f():\n  from fedjax_sim.rules import run",
            "fedjax_sim.tasks.losses",
            "fedjax_sim.rules on floor 4",
        ),
        ("from ..engines import lanes", "fedjax_sim.data.plans", "fedjax_sim.engines on floor 5"),
        ("import fedjax_sim.data", "fedjax_sim_kernels.conv.slices", "fedjax_sim.data on floor 2"),
        ("from fedjax_sim import cellar", "fedjax_sim.rules._run", "place 'cellar' on one in FLOORS"),
        ("import fedjax_sim", "fedjax_sim.cli", "fedjax_sim itself"),
    ],
)
def test_an_import_that_goes_up_is_found(source, module, message):
    (wrong,) = climbs(source, module)
    assert message in wrong


def test_imports_that_stay_or_go_down_are_not():
    source = (
        "import jax\nfrom fedjax_sim import rules\nfrom fedjax_sim._src import keys\nfrom . import _reduce"
    )
    assert climbs(source, "fedjax_sim.aggregation._run") == []
