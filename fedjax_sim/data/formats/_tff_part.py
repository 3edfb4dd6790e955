"""One part of a TensorFlow Federated file: its clients, and each client's fields as columns."""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from fedjax_sim.data._columns import describe, offsets_of
from fedjax_sim.data._files import errors_name
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.client_source import ClientSource
from fedjax_sim.data.decoders import Decoder
from fedjax_sim.data.formats import _tables

Values = dict[str, "np.ndarray | list"]
"""A client's fields: an array ``[examples, ...]`` each, or a list of what each example holds: text (bytes, where it is no
UTF-8), several texts, or as many numbers as there are."""

# By name, and by the number of values of one example: TFF's own sets, whose examples are flat lists in SQLite.
_SHAPES = {
    ("pixels", 28 * 28): (28, 28),
    ("image", 32 * 32 * 3): (32, 32, 3),
    ("image", 84 * 84 * 3): (84, 84, 3),
}


class Part(abc.ABC):
    """Clients of a file.

    Attributes:
      source: the file, for messages.
      ids: text ``[clients]``, sorted.
      sizes: ``int64[clients]``, examples of each.
    """

    def __init__(self, source: Path, ids: np.ndarray, sizes: Sequence[int]):
        self.source, self.ids, self.sizes = source, ids, np.asarray(sizes, np.int64)

    @abc.abstractmethod
    def client(self, position: int) -> Values:
        """The fields of one client that has examples."""

    @abc.abstractmethod
    def clients(self) -> Iterator[tuple[int, Values]]:
        """Position and fields of all clients that have examples, in any order."""


@contextlib.contextmanager
def errors_name_client(part: Part, position: int) -> Iterator[None]:
    """Turns what is wrong with a client's fields into a ``ValueError`` that begins with its id."""
    try:
        yield
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(f"client {part.ids[position].item()!r}: {error}") from error


@dataclass(frozen=True)
class Layout:
    """What becomes of the fields of a file.

    Attributes:
      columns: new name to field.
      shapes: by field, the shape of one example.
      functions: by new name, what a text field needs.
      label: the label column, int32.
      channel_axis: columns that get a trailing axis of length 1.
    """

    columns: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    functions: Mapping[str, Decoder]
    label: str
    channel_axis: tuple[str, ...]

    def apply(self, values: Values, part: Part, position: int) -> dict[str, np.ndarray]:
        """A client's columns ``[examples, ...]``.

        Raises:
          ValueError: a field is missing, or is no array of the shape that it should have; names the client.
        """
        with errors_name(part.source), errors_name_client(part, position):
            return self._applied(values)

    def _applied(self, values: Values) -> dict[str, np.ndarray]:
        _tables.check_chosen(self.columns, values, "field")
        found = {}
        for new, name in self.columns.items():
            column = values[name]
            if new in self.functions:
                found[new] = list(column)
            elif isinstance(column, list):
                raise ValueError(_no_array(name, column))
            else:
                found[new] = _shaped(name, column, self.shapes.get(name))
        columns = _tables.decoded(found, self.functions)
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"columns are of lengths {lengths}, expected one row per example in every column."
            )
        _tables.make_labels(columns, self.label)
        for name in self.channel_axis:
            _tables.add_channel_axis(columns, name)
        return columns


def _no_array(name: str, column: list) -> str:
    fix = f"choose other fields by columns=, or turn this one into numbers by decode={{{name!r}: function}}."
    odd = next((value for value in column if isinstance(value, str | bytes)), None)
    if odd is not None:
        return f"field {name!r} holds text, such as {str(odd)[:40]!r}, expected numbers: {fix}"
    lengths = [len(value) for value in column]
    return f"field {name!r} has {min(lengths)} to {max(lengths)} values in an example, expected as many in each: {fix}"


def _shaped(name: str, column: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    row = column.shape[1:]
    if shape is None:
        shape = () if row == (1,) else _SHAPES.get((name, math.prod(row)), row) if len(row) == 1 else row
    if math.prod(shape) != math.prod(row):
        raise ValueError(
            f"field {name!r} has examples of shape {list(row)}, {math.prod(row)} values, expected {list(shape)}. Give "
            f"shapes={{{name!r}: [...]}}."
        )
    if name == "image" and column.dtype == np.int64:
        # TFF's examples know no smaller type than int64.
        if column.min(initial=0) < 0 or column.max(initial=0) > 255:
            raise ValueError(
                f"field 'image' holds numbers from {column.min()} to {column.max()}, expected 0 to 255."
            )
        column = column.astype(np.uint8)
    return column.reshape(len(column), *shape)


def text(raw: bytes) -> str | bytes:
    """Text where it is UTF-8: an encoded image, for example, is not."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


class LazyPart(ClientSource):
    """The clients of a part, read when they are wanted."""

    def __init__(self, part: Part, layout: Layout, like: Mapping[str, np.ndarray]):
        specs = {name: jax.ShapeDtypeStruct(column.shape[1:], column.dtype) for name, column in like.items()}
        super().__init__(part.sizes, specs, part.ids)
        self._part, self._layout, self._like = part, layout, like

    def make(self, client: int) -> Mapping[str, np.ndarray]:
        """The columns of the client at this position, from the file."""
        if self.sizes[client] == 0:
            return {name: column[:0] for name, column in self._like.items()}
        columns = self._layout.apply(self._part.client(client), self._part, client)
        _check_like(columns, self._like, self._part, client)
        return columns


def in_memory(part: Part, layout: Layout, like: Mapping[str, np.ndarray]) -> ClientData:
    """All clients of a part, with all examples; ``like`` are the columns of some client.

    Raises:
      ValueError: a client's columns are not like those; names it.
    """
    sizes = part.sizes.copy()
    places = offsets_of(sizes)
    # Where no function changes the number of rows, every client has its place already.
    out = {
        name: np.empty((0 if layout.functions else places[-1], *column.shape[1:]), column.dtype)
        for name, column in like.items()
    }
    made: dict[int, dict[str, np.ndarray]] = {}
    for position, values in part.clients():
        columns = layout.apply(values, part, position)
        _check_like(columns, like, part, position)
        if layout.functions:
            made[position] = columns
            sizes[position] = len(next(iter(columns.values())))
        else:
            for name, column in columns.items():
                out[name][places[position] : places[position + 1]] = column
    if made:
        out = {name: np.concatenate([made[position][name] for position in sorted(made)]) for name in like}
    with errors_name(part.source):
        return ClientData(out, offsets_of(sizes), part.ids)


def _check_like(
    columns: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray], part: Part, position: int
) -> None:
    if describe(columns) != describe(like):
        raise ValueError(
            f"{part.source}: client {part.ids[position].item()!r} has columns {describe(columns)}, another has "
            f"{describe(like)}; expected the same dtypes and shapes."
        )
