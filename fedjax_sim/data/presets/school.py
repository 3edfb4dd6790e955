"""Examination scores by school, the set of multi-task learning, from its MATLAB file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data._files import errors_name, needed
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated, split
from fedjax_sim.data.presets._matlab import read_cells
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
      path: the file ``school.mat``, or the folder that holds it.
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
    if path.is_dir():
        path = path / "school.mat"
    path = needed(path.parent, path.name, "the repository jiayuzhou/MALSAR, data/school.mat")
    with errors_name(path):
        columns, sizes = _read(path)
    owner = np.repeat(np.arange(_SCHOOLS), sizes)
    parts = split(ClientData.from_arrays(columns, owner, ids=range(_SCHOOLS)), test_fraction, seed)
    return Federated(*normalised(*parts, how=normalise), name="school")


def _read(path: Path) -> tuple[dict[str, np.ndarray], list[int]]:
    """Features and scores of all students, school by school, and how many each school has."""
    cells = read_cells(path)
    for name in ("X", "Y"):
        if name not in cells:
            raise ValueError(
                f"no cell array is called {name!r}, the file has {', '.join(cells) or 'none'}; expected X and Y."
            )
        check_count(len(cells[name]), _SCHOOLS, f"cells in {name}")
    for place, (x, y) in enumerate(zip(cells["X"], cells["Y"], strict=True)):
        if x.shape != (len(x), _FEATURES) or y.shape != (len(x), 1):
            raise ValueError(
                f"school {place} has X {list(x.shape)} and Y {list(y.shape)}, expected [students, {_FEATURES}] and "
                "[students, 1], as many students in both."
            )
    x, y = (np.concatenate(cells[name], dtype=np.float32, casting="unsafe") for name in ("X", "Y"))
    check_count(len(x), _STUDENTS, "students")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(
            "X or Y holds NaN, infinity or a number too large for float32, expected finite numbers."
        )
    return {"x": x, "y": y[:, 0]}, [len(scores) for scores in cells["Y"]]
