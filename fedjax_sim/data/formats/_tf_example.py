"""TensorFlow's ``tf.train.Example``, read without TensorFlow."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

Features = dict[str, "np.ndarray | list[bytes]"]
"""By name, sorted: ``float32[values]``, ``int64[values]``, or a list of bytes."""


def parse_example(raw: bytes | None) -> Features:
    """The features of one serialised example.

    Raises:
      ValueError: the bytes are no example, or a feature of it has no values' list.
    """
    from google.protobuf.message import DecodeError

    if not isinstance(raw, bytes):
        raise ValueError(f"an example is of type {type(raw).__name__}, expected bytes.")
    example = _example_class()()
    try:
        example.ParseFromString(raw)
    except DecodeError as error:
        raise ValueError(
            f"an example of {len(raw)} bytes is no tf.train.Example, or was cut off: {error}"
        ) from error
    found: Features = {}
    for name, feature in sorted(
        example.features.feature.items(), key=lambda item: item[0]
    ):  # maps have no order
        kind = feature.WhichOneof("kind")
        if kind is None:
            raise ValueError(f"feature {name!r} of an example has no list of values.")
        values = getattr(feature, kind).value
        found[name] = list(values) if kind == "bytes_list" else np.asarray(values, _DTYPES[kind])
    return found


_DTYPES = {"float_list": np.float32, "int64_list": np.int64}


@functools.cache
def _example_class() -> Any:
    """The class of the message, from its public definition: a map from names to one of three lists."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    for name, kind in (
        ("BytesList", field.TYPE_BYTES),
        ("FloatList", field.TYPE_FLOAT),
        ("Int64List", field.TYPE_INT64),
    ):
        file.message_type.add(name=name).field.add(name="value", number=1, label=many, type=kind)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), start=1):
        of = ".tf." + name.title().replace("_", "")
        feature.field.add(
            name=name, number=number, label=one, type=field.TYPE_MESSAGE, type_name=of, oneof_index=0
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=one, type=field.TYPE_STRING)
    entry.field.add(name="value", number=2, label=one, type=field.TYPE_MESSAGE, type_name=".tf.Feature")
    of = ".tf.Features.FeatureEntry"
    features.field.add(name="feature", number=1, label=many, type=field.TYPE_MESSAGE, type_name=of)
    example = file.message_type.add(name="Example")
    example.field.add(name="features", number=1, label=one, type=field.TYPE_MESSAGE, type_name=".tf.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))
