"""Data sets in Parquet and Arrow files, a row per example."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from fedjax_sim.data._files import check_is_file
from fedjax_sim.data.decoders import Decode
from fedjax_sim.data.federated import Federated
from fedjax_sim.data.formats._arrow import SUFFIXES
from fedjax_sim.data.formats._arrow_sets import Piece, Wanted, check_shards
from fedjax_sim.data.formats._arrow_stored import arrow_set
from fedjax_sim.data.formats._hive import Keys, keys_of
from fedjax_sim.data.formats._tables import Columns


def parquet(
    path: str | Path,
    *,
    client: str | None = None,
    split: str | None = "split",
    train: str = "train",
    test: str | None = None,
    columns: Columns | None = None,
    label: str = "y",
    channel_axis: str | Iterable[str] = (),
    decode: Decode | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    store: str | Path | None = None,
) -> Federated:
    """Reads Parquet and Arrow files, a row per example and a column that says who owns it.

    A folder is all files ``.parquet``, ``.pq``, ``.arrow`` and ``.feather`` in it and below, also where links lead, in the
    order of their names; what begins with a dot is left out. If some are named after the parts (``train-0.parquet``, ``test/a.parquet``), the names divide them; otherwise a column
    may. Folders called ``client=ann`` are a column of text, for ``client`` or ``split``, or where ``columns`` names it; otherwise ``notes``
    says that it is left out. Training and test part have the same clients in the same order, sorted; a client may be empty in either.

    Numbers keep their type. Lists of one length become axes. Encoded images, PNG or JPEG for example,
    as bytes or as ``{bytes, path}``, are decoded where all have one shape: ``uint8[examples, height, width(, channels)]``. The label
    column becomes int32 if it holds integers. It also gives ``classes``: as many as the schema names, or the largest
    label plus one unless there are negative ones.

    Args:
      path: a file or a folder.
      client: the column of ids, text or integers; by default ``"client"`` if there is one. Without, one client holds
        all, until ``fedjax_sim.data.repartition`` deals the examples out; ``notes`` says so.
      split: the column that divides rows: 0 for training and 1 for test, or names of parts. A file without
        ``"split"`` is all training data.
      train: name of the part to train on.
      test: name of the part to evaluate on; by default ``"test"``, or else ``"validation"``, if there is one. Other
        parts are left out; ``notes`` names them.
      columns: what to keep: names, or new name to name in the file. By default all but ``client`` and ``split``;
        ``image`` is then called ``x`` and ``label`` ``y``.
      label: the label column (its new name), if there is one.
      channel_axis: columns ``[examples, height, width]`` that get a trailing axis of length 1, as convolutions expect.
      decode: by name in the file, a function for a column that holds no numbers: it gets the list of all values and
        returns an array ``[examples, ...]``, or several by new name; see ``fedjax_sim.data.decoders``.
      test_fraction: divides the examples of each client, by ``fedjax_sim.data.split``, where there is no split.
      seed: for ``test_fraction``.
      store: a folder to write the set to, as ``fedjax_sim.data.write`` does, and to read it from, memory-mapped: for sets
        larger than memory. Files are read in pieces, twice, so a ``decode`` gets the values of one piece. A folder that
        was made of the same files and settings is used as it is.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: a file is damaged or was cut off, lacks a column, a shard is missing, ids are null, a column is no
        array, or things do not fit together; begins with the name of the file. Also if ``store`` holds a set that is made of
        something else.

    Example:
      >>> import tempfile, pyarrow, pyarrow.parquet, fedjax_sim as fs
      >>> toy = pyarrow.table({"who": ["bo", "ann", "bo"], "x": [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], "y": [0, 1, 1]})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     pyarrow.parquet.write_table(toy, folder + "/toy.parquet")
      ...     data = fs.data.parquet(folder + "/toy.parquet", client="who")
      >>> data.train
      ClientData(2 clients with 1 to 2 of 3 examples, x: float64[2], y: int32[], 60 B)
    """
    path = Path(path)
    return arrow_set(
        path.resolve().name.removesuffix(path.suffix if path.is_file() else ""),
        path,
        [Piece.of_file(*found) for found in _files(path, train, test)],
        Wanted(client, split, train, test, columns, label, channel_axis, decode, test_fraction, seed),
        store,
    )


def _files(path: Path, train: str, test: str | None) -> list[tuple[Path, str | None, Keys]]:
    """Files, the part that each belongs to by its name (``None`` where names say nothing), and what its folders say."""
    if not path.is_dir():
        check_is_file(path)
        return [(path, None, {})]
    files = sorted(_below(path))
    if not files:
        raise ValueError(f"{path} holds no file {', '.join(SUFFIXES)}, expected some.")
    check_shards(files)
    known = [train, *([test] if test else ["test", "validation"])]
    parts = [_part(file, path, known) for file in files]
    if not set(parts) & set(known):
        parts = [None] * len(files)
    return list(zip(files, parts, keys_of(files, path), strict=True))


def _below(folder: Path) -> Iterator[Path]:
    """Files of tables in a folder and below it. A folder that cannot be read is an error, and so is one that comes twice."""

    def stop(error: OSError) -> None:
        raise error

    seen: dict[str, str] = {}
    for place, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        before = seen.setdefault(os.path.realpath(place), place)
        if before != place:
            raise ValueError(
                f"{place} and {before} are one folder, whose examples would count twice. Remove the link."
            )
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield Path(place, name)


def _part(file: Path, folder: Path, known: list[str]) -> str:
    """``train`` for ``train.parquet``, ``train-00000-of-00002.parquet`` and what is below ``train/``.

    The name of a part ends where a number or a suffix begins.
    """
    names = [re.split(r"[-_.]?\d|\.", name, maxsplit=1)[0] for name in file.relative_to(folder).parts]
    for name in names:
        if name in known:
            return name
        close = next((part for part in known if re.match(rf"{re.escape(part)}[-_ ]", name)), None)
        if close is not None:
            raise ValueError(
                f"{file} may be of the part {close!r} or of one called {name!r}. Rename it, or name the parts by train= and "
                "test=."
            )
    return names[0]
