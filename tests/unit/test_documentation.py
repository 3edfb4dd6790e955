"""The documentation is complete: settings, public names, files of a run, paths, decisions."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import tomllib
from pathlib import Path

import pytest

from fedjax_sim import experiment
from fedjax_sim.experiment._settings import flat

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]

PACKAGES = {
    "fedjax_sim": "fedjax_sim", "fedjax_sim.aggregation": "aggregation", "fedjax_sim.algorithms": "algorithms",
    "fedjax_sim.algorithms.server_optimizers": "algorithms", "fedjax_sim.bench": "bench", "fedjax_sim.cli": "cli",
    "fedjax_sim.data": "data", "fedjax_sim.data.augmentations": "data", "fedjax_sim.data.cohorts": "cohorts",
    "fedjax_sim.data.partitions": "partitions", "fedjax_sim.data.formats": "data", "fedjax_sim.data.presets": "data",
    "fedjax_sim.data.decoders": "data", "fedjax_sim.data.preprocessing": "data", "fedjax_sim.data.text": "data",
    "fedjax_sim.engines": "engines", "fedjax_sim.experiment": "experiment", "fedjax_sim.metrics": "metrics",
    "fedjax_sim.models": "models", "fedjax_sim.plots": "plots", "fedjax_sim.privacy": "privacy", "fedjax_sim.privacy.audits": "audits", "fedjax_sim.report": "report",
    "fedjax_sim.rules": "rules", "fedjax_sim.tasks": "tasks", "fedjax_sim.tasks.losses": "tasks",
    "fedjax_sim.tracking": "tracking", "fedjax_sim_kernels": "kernels",
}  # fmt: skip
"""Public packages, and their page in the reference."""


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def public(package: str) -> list[str]:
    """Names of a package that are no modules: those of ``__all__``, else those defined there."""
    module = importlib.import_module(package)
    defined = [
        n for n, x in vars(module).items() if getattr(x, "__module__", None) == package and n[0] != "_"
    ]
    return [
        name for name in getattr(module, "__all__", defined) if not inspect.ismodule(getattr(module, name))
    ]


# --- the reference -------------------------------------------------------------------------------------------


def test_every_package_that_lists_names_is_in_the_reference():
    """A package below the top with an ``__all__`` of its own is public, unless its name says otherwise."""
    found = {
        "fedjax_sim" + "".join(f".{part}" for part in path.relative_to(ROOT / "fedjax_sim").parent.parts)
        for path in (ROOT / "fedjax_sim").rglob("__init__.py")
        if "_src" not in path.parts
    }
    assert found <= set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package):
    shown = re.findall(rf"^::: {re.escape(package)}\.(\w+)$", text(f"reference/{PACKAGES[package]}.md"), re.M)
    assert sorted(shown) == sorted(set(public(package)))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_docstring(package):
    module = importlib.import_module(package)
    for name in public(package):
        value = getattr(module, name)
        # A class without a docstring has that of its base, a constant that of its type: those say nothing.
        own = value.__dict__.get("__doc__") if inspect.isclass(value) else inspect.getdoc(value)
        if not inspect.isclass(value) and own == inspect.getdoc(type(value)):
            own = constant_docstring(package, name)
        assert own and re.search(r"\w.*[.:]", own), f"{package}.{name} has no docstring of a sentence"


def constant_docstring(package: str, name: str) -> str | None:
    """The text that stands below the assignment of a module's constant."""
    source = inspect.getsource(importlib.import_module(package))
    match = re.search(rf'^{name}\b.*=(?:.|\n)*?^"""((?:.|\n)*?)"""', source, re.MULTILINE)
    return match and match[1]


# --- settings ------------------------------------------------------------------------------------------------


def test_tables_of_settings_are_those_of_the_code():
    """``python docs/generate.py`` renews them."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for page in ("configuration.md", "components.md"):
        assert generate.filled(text(page), generate.blocks()) == text(page)
    markers = re.findall(r"<!-- begin (\w+) -->", text("configuration.md") + text("components.md"))
    assert sorted(markers) == sorted(generate.blocks())


def test_every_key_of_the_default_is_described():
    described = text("configuration.md") + text("components.md")
    for key in flat(experiment.load().settings):
        table, _, name = re.sub(r"\[\d+\]", "", key).rpartition(".")
        assert f"`{name}`" in described or name == "name", key
        if table:
            assert f"[{table.split('.')[0]}]" in described, key


def test_every_setting_says_what_it_means():
    """In ``fedjax-sim list`` and on the pages; an optimizer's words are optax's."""
    for kind in experiment.kinds():
        for name in experiment.names(kind):
            for parameter in experiment.find(kind, name, kind).parameters.values():
                if parameter.about and kind != "optimizers":
                    assert parameter.about.endswith((".", ")")), (
                        f"{kind} {name}: {parameter.about!r} is cut off"
                    )


def test_every_component_of_the_pages_can_be_listed():
    for kind in experiment.kinds():
        assert f"## {kind.capitalize()}" in text("components.md")
        assert f"`{kind}`" in text("how-to/own-component.md")


# --- run folders ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with everything that adds to its files."""
    chain = "[{name='clip_by_global_norm', clip_norm=1.0}, {name='mean', over='clients'}]"
    changes = [
        "rounds=2", "data.clients=12", "cohort.size=4", "model.name=linear", "evaluation.personalised=true",
        "evaluation.every=1", "unseen.fraction=0.2", "unseen.seed=0", "seeds=[0, 1]", f"algorithm.aggregate={chain}",
    ]  # fmt: skip
    return experiment.run(experiment.load(changes=changes), tmp_path_factory.mktemp("runs") / "a")


@pytest.mark.slow
def test_every_file_of_a_run_is_described(finished):
    for path in finished.folder.iterdir():
        if path.name != ".lock":
            assert f"`{path.name}{'/' if path.is_dir() else ''}`" in text("run-folder.md"), path.name


@pytest.mark.slow
def test_every_key_of_a_row_is_described(finished):
    from fedjax_sim import plots

    run, page = plots.read_run(finished.folder), text("run-folder.md")
    for name in run.metrics:
        where, _, rest = name.partition("/")
        over = rest.partition("/")[2]
        if rest and where in ("eval", "unseen"):
            assert not over or f"/{over}`" in page, name
        else:
            assert f"`{name}`" in page, name
    for name in finished.summary:
        assert f"`{name}`" in page, name
    for name in run.clients:
        assert f"`{name}`" in page or name.rpartition("/")[0] in ("eval", "unseen", "before", "after"), name


# --- what pages name -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_that_a_page_names_exist(page):
    written = page.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:tests|docs|examples|benchmarks|fedjax_sim|kernels)/[\w./-]+)`", written)
    short = re.findall(
        r"`((?:cli|experiment|plots|report|tracking|engines|rules|data|aggregation|algorithms)/\w+\.py)`",
        written,
    )
    for path in [*paths, *(f"fedjax_sim/{path}" for path in short)]:
        assert (ROOT / path).exists() or Path(path).stem == "_name", path
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)", written)
    for link in links:
        assert (page.parent / link).exists(), link


def test_every_decision_is_listed():
    listed = re.findall(r"\((\d{4}-[\w-]+\.md)\) \| (.+) \|", text("decisions/index.md"))
    files = sorted(path for path in (DOCS / "decisions").glob("0*.md"))
    assert [name for name, _ in listed] == [path.name for path in files]
    for (_, title), path in zip(listed, files, strict=True):
        assert path.read_text(encoding="utf-8").splitlines()[0].endswith(f". {title}"), path.name


def test_every_page_is_on_the_site():
    """A strict build says so, too; this needs no mkdocs."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in DOCS.rglob("*.md"):
        name = str(path.relative_to(DOCS))
        assert name in nav or re.fullmatch(r"decisions/0.*", name), name


def test_configurations_of_the_pages_are_toml():
    blocks = [
        b for page in PAGES for b in re.findall(r"```toml[^\n]*\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    assert len(blocks) >= 4
    for block in blocks:
        tomllib.loads(block)
