"""TensorFlow Serving's warm-up files: TFRecords of PredictionLog,
read without its generated protobuf classes.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .core import Extension, Load, LoadError, LoadRequest, Servable, load_errors, tensorflow

MOST_RECORDS = 1000  # TensorFlow Serving's limit


def wrap_load(server: Any, load: Load) -> Load:
    """A loader that runs the requests stored with a model before the model serves others."""

    def load_replayed(request: LoadRequest) -> Servable:
        servable = load(request)
        with load_errors(request.folder, functools.partial(servable.retire, 0)):
            replay(request.folder, servable.call)
        return servable

    return load_replayed


def replay(folder: Path, answer: Callable[[str, dict[str, np.ndarray]], Any]) -> None:
    """Run the requests in assets.extra/tf_serving_warmup_requests, as TensorFlow Serving does.

    A bad record fails the load.
    """
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    if not path.is_file():
        return
    tf = tensorflow()
    for index, record in enumerate(tf.compat.v1.io.tf_record_iterator(str(path))):
        if index == MOST_RECORDS:
            raise LoadError(
                f"Number of warmup records exceeds the maximum ({MOST_RECORDS}) at "
                "assets.extra/tf_serving_warmup_requests"
            )
        try:
            for name, inputs in read_requests(tf, record):
                answer(name, inputs)
        except Exception as error:
            raise LoadError(
                f"Failed to parse warmup record: {index}: "
                f"{getattr(error, 'message', None) or error}"
            ) from error


def read_fields(message: bytes) -> dict[int, list[bytes]]:
    """The length-delimited fields of a protobuf message of any type, by field number."""
    # imported late: protobuf comes with TensorFlow
    from google.protobuf import empty_pb2, unknown_fields

    found: dict[int, list[bytes]] = {}
    for unknown in unknown_fields.UnknownFieldSet(empty_pb2.Empty.FromString(message)):
        if unknown.wire_type == 2:
            found.setdefault(unknown.field_number, []).append(unknown.data)
    return found


def read_requests(tf: Any, record: bytes) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The requests of a predict, classify or regress PredictionLog, as
    (signature name, inputs).
    """
    log = read_fields(record)
    for number in log.keys() & {2, 3, 6}:
        # classify_log, regress_log, predict_log, each with its request as field 1
        request = read_fields(read_fields(log[number][0])[1][0])
        name = (
            b"".join(read_fields(request.get(1, [b""])[0]).get(3, [])).decode() or "serving_default"
        )
        yield (
            name,
            read_tensors(tf, request[2])
            if number == 6
            else {"inputs": read_examples(request[2][0])},
        )


def read_tensors(tf: Any, entries: Sequence[bytes]) -> dict[str, np.ndarray]:
    """A PredictRequest's `inputs`: map entries of name and TensorProto."""
    from tensorflow.core.framework import tensor_pb2

    pairs = [read_fields(entry) for entry in entries]
    return {
        pair[1][0].decode(): tf.make_ndarray(tensor_pb2.TensorProto.FromString(pair[2][0]))
        for pair in pairs
    }


def read_examples(given: bytes) -> np.ndarray:
    """A ClassificationRequest's `input` as serialized Examples [N],
    its context, if any, merged into each.
    """
    fields = read_fields(given)
    examples = read_fields((fields.get(1) or fields[2])[0])
    # concatenated messages merge; the later one, the example, wins
    context = b"".join(examples.get(2, []))
    return np.array([context + example for example in examples[1]], object)


EXTENSION = Extension("warmup", wrap_load=wrap_load)
