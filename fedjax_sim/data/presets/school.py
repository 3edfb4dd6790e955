"""Examination scores by school, the set of multi-task learning, from its MATLAB file."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data._files import errors_name
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated, split
from fedjax_sim.data.presets._local import needed
from fedjax_sim.data.presets._tables import check_count, normalised

_SCHOOLS, _STUDENTS, _FEATURES = 139, 15_362, 28


def school(
    path: str | Path,
    *,
    normalise: Literal["client", "pooled"] | None = None,
    test_fraction: float = 0.25,
    seed: int = 0,
) -> Federated:
    """Examination scores of 15,362 students in 139 schools of inner London: regression, a school is a client.

    Columns: ``x`` is ``float32[examples, 28]``: the year in three indicators, two percentages that describe the school, other
    indicators of school and student, and a last feature that is always 1; ``y`` is ``float32[examples]``, the score, from 1 to 70.
    Client ids are 0 to 138, in the file's order; a school has 22 to 251 students. The file has no test part: each school's
    students are divided by ``fedjax_sim.data.split``, three quarters to train on, as Argyriou et al. divide them.

    Args:
      path: the file ``school.mat``.
      normalise: features less the mean and divided by the standard deviation of the training examples: of the own school
        (``"client"``) or of all (``"pooled"``). A feature that is constant there becomes 0. Scores stay as they are.
      test_fraction: share of each school's students that is its test part, in (0, 1).
      seed: of the division.

    Raises:
      FileNotFoundError, IsADirectoryError: the file is not there; says where to get it.
      ValueError: it is damaged, of another kind or not as published.

    Source: Inner London Education Authority; Argyriou et al. 2008, Convex multi-task feature learning (Machine Learning 73).
    """
    checks.one_of("normalise", normalise, ("client", "pooled", None))
    path = Path(path)
    needed(path.parent, path.name, "the repository jiayuzhou/MALSAR, data/school.mat")
    with errors_name(path):
        columns, sizes = _read(path)
    owner = np.repeat(np.arange(_SCHOOLS), sizes)
    parts = split(ClientData.from_arrays(columns, owner, ids=range(_SCHOOLS)), test_fraction, seed)
    return Federated(*normalised(*parts, how=normalise), name="school")


def _read(path: Path) -> tuple[dict[str, np.ndarray], list[int]]:
    """Features and scores of all students, school by school, and how many each school has."""
    content = _load(path)
    cells = {name: _cells(name, content) for name in ("X", "Y")}
    features = [_matrix(f"X{{{place + 1}}}", x, _FEATURES) for place, x in enumerate(cells["X"])]
    scores = [_matrix(f"Y{{{place + 1}}}", y, 1)[:, 0] for place, y in enumerate(cells["Y"])]
    for place, (x, y) in enumerate(zip(features, scores, strict=True)):
        if len(x) != len(y):
            raise ValueError(f"school {place} has {len(x)} rows of X and {len(y)} of Y, expected as many.")
    sizes = [len(y) for y in scores]
    check_count(sum(sizes), _STUDENTS, "students")
    return {"x": np.concatenate(features), "y": np.concatenate(scores)}, sizes


def _load(path: Path) -> dict[str, Any]:
    """``X`` and ``Y`` of a MATLAB file. Nothing in one is executed: code in it stays bytes and is refused later."""
    from scipy.io import loadmat  # comes with scikit-learn; slow to import
    from scipy.io.matlab import MatReadError

    damaged = (MatReadError, ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError)
    damaged += (NotImplementedError, TypeError, ValueError, Warning, zlib.error)
    try:
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("error")  # a name that is there twice, or a variable that cannot be read
            return loadmat(stream, variable_names=["X", "Y"])
    except damaged as error:
        raise ValueError(
            f"this is no MATLAB file of version 5, or it is damaged: {str(error) or type(error).__name__}"
        ) from error


def _cells(name: str, content: dict[str, Any]) -> list[Any]:
    if name not in content:
        raise ValueError(f"no variable is called {name!r}, expected X and Y, cell arrays of {_SCHOOLS}.")
    found = content[name]
    # Functions and objects of MATLAB's are arrays of objects too, of classes of their own.
    if type(found) is not np.ndarray or found.dtype != object or found.shape != (1, _SCHOOLS):
        shape = f"{getattr(found, 'dtype', '')}{list(getattr(found, 'shape', []))}"
        raise ValueError(
            f"variable {name!r} is {type(found).__name__} {shape}, expected a cell array [1, {_SCHOOLS}]."
        )
    return list(found[0])


def _matrix(name: str, value: Any, width: int) -> np.ndarray:
    if type(value) is not np.ndarray or value.dtype.kind not in "iuf" or value.shape[1:] != (width,):
        shape = f"{getattr(value, 'dtype', '')}{list(getattr(value, 'shape', []))}"
        raise ValueError(f"{name} is {type(value).__name__} {shape}, expected numbers [students, {width}].")
    if not np.isfinite(value).all():
        raise ValueError(f"{name} holds NaN or infinity, expected finite numbers.")
    return value.astype(np.float32)
