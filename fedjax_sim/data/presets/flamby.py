"""Two sets of FLamby, cross-silo learning between hospitals: heart disease and breast cancer."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data._files import errors_name, needed
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated
from fedjax_sim.data.presets._tables import check_count, normalised, numbers, read_rows

_HOSPITALS = {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}
"""Rows of each hospital's file."""

# Positions in a row of UCI's files.
_CHEST_PAIN, _ELECTROCARDIOGRAM, _DIAGNOSIS, _FIELDS = 2, 6, 13, 14
_DROPPED = (10, 11, 12)  # slope, vessels, thallium: missing nearly everywhere outside of Cleveland
_LEVELS = {_CHEST_PAIN: (1, 2, 3, 4), _ELECTROCARDIOGRAM: (0, 1, 2), _DIAGNOSIS: (0, 1, 2, 3, 4)}

_REGIONS = ("northeast", "south", "west", "midwest", "europe", "canada")
_PATIENTS, _FEATURES = 1088, 39


def heart_disease(
    folder: str | Path, *, normalise: Literal["client", "pooled"] | None = "client"
) -> Federated:
    """Heart disease in four hospitals, with FLamby's features and its division into training and test.

    Columns: ``x`` is ``float32[examples, 13]``: age, sex, blood pressure at rest, cholesterol, blood sugar, highest heart rate,
    angina under exercise and ST depression, then three indicators of chest pain (2, 3, 4) and two of the electrocardiogram
    (1, 2); ``y`` is ``int32[examples]``, 1 for a disease. Clients, training + test: ``cleveland`` 199 + 104, ``hungarian``
    172 + 89, ``switzerland`` 30 + 16, ``va`` 85 + 45. Patients with a value missing among these are left out, by FLamby's rule.

    Args:
      folder: holds ``processed.{cleveland,hungarian,switzerland,va}.data``.
      normalise: features less the mean and divided by the standard deviation of the training examples: of the own hospital
        (``"client"``, on which FLamby trains) or of all (``"pooled"``, its pooled test). ``None`` leaves them as they are.
        A feature that is constant there becomes 0.

    Raises:
      FileNotFoundError, IsADirectoryError: a file is not there; says where to get it.
      NotADirectoryError: the folder is a file.
      ValueError: a file is damaged or not as published.

    Source: Janosi et al. 1988, Heart Disease, UCI (doi 10.24432/C52P4X); du Terrail et al. 2022 (arXiv 2210.04620), FLamby.
    """
    checks.one_of("normalise", normalise, ("client", "pooled", None))
    parts: tuple[dict[str, dict[str, np.ndarray]], ...] = ({}, {})
    for hospital, patients in _HOSPITALS.items():
        path = needed(
            Path(folder), f"processed.{hospital}.data", "UCI's page of Heart Disease, doi 10.24432/C52P4X"
        )
        with errors_name(path):
            columns = _hospital(path, patients)
            is_test = _flamby_test(columns["y"], stratified=hospital != "switzerland")
        for part, rows in zip(parts, (~is_test, is_test), strict=True):
            part[hospital] = {name: column[rows] for name, column in columns.items()}
    train, test = normalised(*(ClientData.from_clients(part) for part in parts), how=normalise)
    return Federated(train, test, name="heart_disease", classes=2)


def _hospital(path: Path, patients: int) -> dict[str, np.ndarray]:
    table = numbers(read_rows(path, _FIELDS), missing="?")
    check_count(len(table), patients, "patients")
    kept = [field for field in range(_FIELDS) if field not in _DROPPED]
    table = table[~np.isnan(table[:, kept]).any(axis=1)]
    for field, levels in _LEVELS.items():
        other = table[~np.isin(table[:, field], levels), field]
        if other.size:
            raise ValueError(f"field {field} (from 0) holds {other[0]:g}, expected one of {levels}.")
    plain = [field for field in kept if field not in _LEVELS]
    # FLamby leaves out the first level: its indicator is one less the others.
    indicators = [table[:, [field]] == _LEVELS[field][1:] for field in (_CHEST_PAIN, _ELECTROCARDIOGRAM)]
    return {
        "x": np.concatenate([table[:, plain], *indicators], axis=1).astype(np.float32),
        "y": (table[:, _DIAGNOSIS] > 0).astype(np.int32),
    }


def _flamby_test(labels: np.ndarray, stratified: bool) -> np.ndarray:
    """Which examples FLamby tests on, ``bool[examples]``: 34 % of them, by scikit-learn's draw from seed 43."""
    from sklearn.model_selection import train_test_split  # slow to import, and absent from accelerator images

    rows = np.arange(len(labels))
    _, tested = train_test_split(
        rows, test_size=0.34, random_state=43, stratify=labels if stratified else None
    )
    return np.isin(rows, tested)


def tcga_brca(folder: str | Path) -> Federated:
    """Survival with breast cancer in six regions, with FLamby's features and its division into training and test.

    Columns: ``x`` is ``float32[examples, 39]``, the age in years and 38 indicators, not normalised, as FLamby has them; ``event``
    is ``int32[examples]``, 1 for a death and 0 where the patient left the study; ``time`` is ``float32[examples]``, days until
    then. Clients, training + test: ``northeast`` 248 + 63, ``south`` 156 + 40, ``west`` 164 + 42, ``midwest`` 129 + 33, ``europe``
    129 + 33, ``canada`` 40 + 11.

    Args:
      folder: holds ``brca.csv`` and ``train_test_split.csv``, as in FLamby's repository.

    Raises:
      FileNotFoundError, IsADirectoryError: a file is not there; says where to get it.
      NotADirectoryError: the folder is a file.
      ValueError: a file is damaged or not as published, or the two do not fit together.

    Source: The Cancer Genome Atlas, breast invasive carcinoma; du Terrail et al. 2022 (arXiv 2210.04620), FLamby.
    """
    origin = "the repository owkin/FLamby, folder flamby/datasets/fed_tcga_brca"
    patients_path, split_path = (
        needed(Path(folder), name, origin) for name in ("brca.csv", "train_test_split.csv")
    )
    with errors_name(patients_path):
        place, x, event, time = _patients(patients_path)
    with errors_name(split_path):
        rows = read_rows(split_path, 3)[1:]
        check_count(len({patient for patient, *_ in rows}), _PATIENTS, "patients")
        check_count(len(rows), _PATIENTS, "rows")
        owners = [_fold(fold) for *_, fold in rows]
    with errors_name(split_path, patients_path):
        absent = [patient for patient, *_ in rows if patient not in place]
        if absent:
            raise ValueError(f"patient {absent[0]!r} is in the former and not in the latter, expected both.")
    order = np.asarray([place[patient] for patient, *_ in rows])
    columns = {"x": x[order], "event": event[order], "time": time[order]}
    regions = np.asarray([region for _, region in owners])
    is_test = np.asarray([part == "test" for part, _ in owners])
    train, test = (
        ClientData.from_arrays({name: c[mask] for name, c in columns.items()}, regions[mask], ids=_REGIONS)
        for mask in (~is_test, is_test)
    )
    return Federated(train, test, name="tcga_brca")


def _patients(path: Path) -> tuple[dict[str, int], np.ndarray, np.ndarray, np.ndarray]:
    """The row of each patient; features, events and times."""
    header, *rows = read_rows(path, _FEATURES + 3) or [[]]
    if header[:2] != ["pid", "age_at_index"] or header[-2:] != ["E", "T"]:
        raise ValueError(f"the header is {', '.join(header)[:60]!r}, expected 'pid,age_at_index,...,E,T'.")
    place = {row[0]: number for number, row in enumerate(rows)}
    if len(place) < len(rows):
        raise ValueError(f"{len(rows)} rows are of {len(place)} patients, expected each patient once.")
    table = numbers([row[1:] for row in rows])
    x, event, time = np.split(table, [_FEATURES, _FEATURES + 1], axis=1)
    if not np.isin(event, (0, 1)).all() or time.min(initial=0) < 0:
        raise ValueError("column 'E' or 'T' is out of range, expected 0 and 1, and days of 0 or more.")
    return place, x.astype(np.float32), event[:, 0].astype(np.int32), time[:, 0].astype(np.float32)


def _fold(name: str) -> tuple[str, str]:
    """``"train_0"`` is ``("train", "northeast")``."""
    part, _, region = name.partition("_")
    if part not in ("train", "test") or region not in map(str, range(len(_REGIONS))):
        raise ValueError(f"fold2 holds {name[:30]!r}, expected train_0 to train_5 or test_0 to test_5.")
    return part, _REGIONS[int(region)]
