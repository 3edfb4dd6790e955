"""Writes the tables of settings into ``configuration.md`` and ``components.md``, read off the code's own signatures.

python docs/generate.py

A test fails while the files are not what this makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedjax_sim import experiment
from fedjax_sim.experiment import _settings
from fedjax_sim.experiment._forms import Parameter
from fedjax_sim.experiment._registry import BUILT_IN, entry_of

DOCS = Path(__file__).resolve().parent
ABOUT_KIND = {
    "datasets": "`[data]`. All but `digits`, `glyphs` and `synthetic` read files that you have; nothing downloads.",
    "partitions": "`[partition]`: deals the examples of any data set to new clients. Beside these settings, the table has "
    "`seed` and `test_fraction` ([configuration](configuration.md#partition)).",
    "augmentations": "The list `task.augment`: what happens to images in training, first to last.",
    "preprocessing": "The list `task.preprocess`: what happens to images in training, after `task.augment`, and in evaluation, "
    "first to last.",
    "decoders": "`data.decode`, for columns that hold no numbers: a table of tables, one for each column by its name in the file.",
    "models": "`[model]`. `classes` and `vocabulary` come from the data where they are not given.",
    "tasks": "`[task]`: the loss and the metrics around the model.",
    "algorithms": "`[algorithm]`.",
    "optimizers": "Wherever an optimizer stands: `algorithm.client`, `algorithm.server`, `algorithm.optimizer`.",
    "transforms": "The list `algorithm.aggregate`: layers around the sum over clients, first to last.",
    "cohorts": "`[cohort]`.",
    "engines": "`[engine]`. The engine changes speed and memory; results agree to float tolerance.",
    "trackers": "The list `trackers`, beside `metrics.jsonl`, which is always written.",
}


def blocks() -> dict[str, str]:
    """The generated parts of both pages, by the name in their markers."""
    found = {"top": table(entry_of("settings", "an experiment", _settings.Run).parameters)}
    for name, factory in _settings.PLAIN.items():
        found[name] = table(entry_of("settings", name, factory).parameters)
    for name, function in _settings.OPTIONAL.items():
        found[name] = table(entry_of(name, name, function).parameters)
    found["partition"] = table(_settings.DEAL)
    found["free"] = ", ".join(f"`{name}`" for name in _settings.FREE_ON_RESUME)
    found["components"] = "\n\n".join(section(kind) for kind in BUILT_IN)
    return found


def section(kind: str) -> str:
    """A heading, and a table for every built-in component of a kind."""
    return "\n\n".join([f"## {kind.capitalize()}", ABOUT_KIND[kind], *components(kind)])


def components(kind: str) -> Iterator[str]:
    for name in BUILT_IN[kind]:
        entry = experiment.find(kind, name, kind)
        source = (
            f"\n\nSource: {entry.source.rstrip('.')}."
            if entry.source and entry.source not in entry.summary
            else ""
        )
        settings = table(entry.parameters) if entry.parameters else "No settings."
        yield f"### `{name}` {{ #{kind}-{name} }}\n\n{prose(entry.summary)}{source}\n\n{settings}"


def table(parameters: Mapping[str, Parameter]) -> str:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, parameter in parameters.items():
        default = "required" if parameter.required else code(parameter.shown_default)
        rows.append(f"| `{name}` | {says(parameter)} | {default} | {prose(parameter.about)} |")
    return "\n".join(rows)


def says(parameter: Parameter) -> str:
    """What a setting may be, names of components shortened to their kind."""
    text = re.sub(r"(a (?:list of )?tables?(?:, each)? with a name), one of [\w, ]+", r"\1", parameter.says)
    return re.sub(r'"[^"]+"', lambda match: f"`{match[0]}`", text).replace("|", "\\|")


def code(text: str) -> str:
    return text if text == "not set" else f"`{text}`"


def prose(text: str) -> str:
    """A docstring's words in Markdown: one pair of backticks, no bars, angle brackets as text."""
    text = text.replace("``", "`").replace("|", "\\|")
    text = re.sub(r"(?<![`\w])(\w*_\w+|\w+\.\w+_\w+)(?![`\w(])", r"`\1`", text) if "`" not in text else text
    return text[:1].upper() + text[1:] if text and not text.startswith("`") else text


def filled(text: str, parts: Mapping[str, str]) -> str:
    """A page with what stands between its markers replaced."""

    def replace(match: re.Match) -> str:
        return f"{match[1]}\n{parts[match[2]]}\n{match[3]}"

    return re.sub(r"(<!-- begin (\w+) -->)\n.*?(<!-- end -->)", replace, text, flags=re.DOTALL)


def main() -> None:
    parts = blocks()
    for name in ("configuration.md", "components.md"):
        page = DOCS / name
        page.write_text(filled(page.read_text(encoding="utf-8"), parts), encoding="utf-8")


if __name__ == "__main__":
    main()
