"""Tables over tables: a file over the one that it extends, a table without a name over the default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables over tables.

    Example:
      >>> from fedjax_sim.experiment._merge import merged
      >>> base = {"client": {"name": "sgd", "learning_rate": 0.1}}
      >>> merged(base, {"client": {"learning_rate": 0.2}})
      {'client': {'name': 'sgd', 'learning_rate': 0.2}}
      >>> merged(base, {"client": {"name": "adam"}})
      {'client': {'name': 'adam'}}
    """
    found = dict(below)
    for key, value in above.items():
        old, new = as_table(below.get(key)), as_table(value)
        both = isinstance(old, Mapping) and isinstance(new, Mapping)
        component = both and "name" in new and new["name"] != old.get("name")
        # Two names alone are text: only a table says that they stand for components.
        texts = isinstance(value, str) and not isinstance(below.get(key), Mapping)
        found[key] = merged(old, new) if both and not component and not texts else value
    return found


def as_table(value: Any) -> Any:
    """A name alone, as in ``client = "adam"``, is a table with nothing but a name."""
    return {"name": value} if isinstance(value, str) else value
