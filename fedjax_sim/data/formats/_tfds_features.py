"""What examples of TensorFlow Datasets hold: features by flat names, and their values as arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.data.formats._tfds_files import records_of


class Feature(NamedTuple):
    """One feature, after nested ones are flattened.

    Attributes:
      path: the names from outside to inside; joined by ``/`` they are the feature's own.
      dtype: of its values; of kind ``O`` for text and bytes.
      text: whether it is text.
      classes: number of classes, where it is a class label.
    """

    path: tuple[str, ...]
    dtype: np.dtype
    text: bool
    classes: int | None


def features_of(builder: Any) -> dict[str, Feature]:
    """All features of a set, by name.

    Raises:
      ValueError: examples are no named features. Combine with ``errors_name``.
    """
    found = {"/".join(path): feature for path, feature in sorted(_flat(builder.info.features, ()))}
    if "" in found:
        raise ValueError(f"examples are {type(builder.info.features).__name__}, expected named features.")
    return found


def feature_called(features: Mapping[str, Feature], name: str) -> Feature:
    """The feature of a name.

    Raises:
      ValueError: there is none.
    """
    if name not in features:
        raise ValueError(f"no feature is called {name!r}, the set has {', '.join(features)}.")
    return features[name]


def _flat(feature: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Feature]]:
    from tensorflow_datasets import features as library

    inner = feature.feature if isinstance(feature, library.Sequence) else feature
    if isinstance(inner, library.FeaturesDict):
        for name, one in inner.items():
            yield from _flat(one, (*path, name))
        return
    classes = inner.num_classes if isinstance(inner, library.ClassLabel) else None
    dtype = feature.np_dtype
    dtype = np.dtype(object if isinstance(dtype, dict) else dtype)
    yield path, Feature(path, dtype, isinstance(feature, library.Text), classes)


def examples_of(
    builder: Any, folder: Path, split: str, wanted: Collection[str]
) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """File, place in it and wanted features of each example of a split; numbers as arrays of the feature's type.

    Raises:
      ValueError: as ``records_of``; also for a record that is no example of the features. Names the file.
    """
    from tensorflow_datasets import features as library

    features = features_of(builder)
    outer = {features[name].path[0] for name in wanted}
    # What is not wanted is not decoded.
    parser = library.FeaturesDict({name: builder.info.features[name] for name in outer})
    for path, place, record in records_of(builder, folder, split):
        try:
            example = parser.deserialize_example_np(record)
            yield path, place, {name: _value(example, features[name]) for name in wanted}
        # Whatever protobuf, the features and the decoders of images raise for bytes that are none of theirs.
        except Exception as error:
            raise ValueError(
                f"{path}: record {place} is no example of the features that the set declares: {error}"
            ) from error


def _value(example: Any, feature: Feature) -> Any:
    for name in feature.path:
        example = example[name]
    if example is None:
        raise ValueError(f"feature {'/'.join(feature.path)!r} is missing")
    return example if feature.dtype.kind == "O" else np.asarray(example, feature.dtype)
