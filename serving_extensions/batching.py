"""Join concurrent requests into batches with TensorFlow's scheduler, as TensorFlow Serving does.

The input is a signature's call in its session; the output is the call to use: batched if its rows
can be joined, else unchanged. Arrays are in the order of the signature's inputs and outputs. Only
models whose config asks for it are batched.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .core import (
    CARRIED,
    Batching,
    Extension,
    Load,
    LoadError,
    LoadRequest,
    ModelServer,
    OpenModel,
    Servable,
    SessionServable,
    Signature,
    SignatureCall,
    extract_sub_graph,
    has_strings,
    load_errors,
    make_callable,
    sample_inputs,
    tensorflow,
)

logger = logging.getLogger("serving")

SessionRun = Callable[..., list[np.ndarray]]
Rows = Sequence[Sequence[np.ndarray]]
SCALES = (1.0, 255.0, -1.0, 1e4, 0.0)  # of made-up rows: 0..1, pictures, others
# Made-up rows of strings, one per scale: a model may read words, characters or numbers.
MADE_UP_TEXTS = (b"a", b"bb c", b"ccc dd e ff", b"123", b"56789")


def wrap_load(server: ModelServer, load: Load) -> Load:
    """A loader whose models join concurrent requests if the config asks for it."""

    def load_batched(request: LoadRequest) -> Servable:
        asked = request.config.batching
        if not asked:
            return load(request)
        plain = load(request.with_config(batching=None))
        if plain.opened is None:
            return plain
        close = functools.partial(plain.retire, 0)
        with load_errors(request.folder, close):
            options = Batching() if asked is True else asked
            model = batch_all(plain.opened, options, request.config.warm_up)
        return SessionServable(model, close)

    return load_batched


def batch_all(model: OpenModel, options: Batching, tries: bool) -> OpenModel:
    """A model with its calls batched in its session, except those that may keep state."""

    def join(name: str, call: SignatureCall) -> SignatureCall:
        label = f"{model.name}: signature {name}"
        if call.keeps:
            logger.warning("%s runs unbatched: its graph may keep state between calls", label)
            return call
        signature = model.signatures[name]
        return batch(model.session, signature, call, options, model.device, label, tries)

    return model.with_calls(join)


def batch(
    session: Any,
    signature: Signature,
    call: SignatureCall,
    options: Batching,
    device: str,
    label: str,
    tries: bool = True,
) -> SignatureCall:
    """Batch a signature's call; return it unchanged if its tensors share no leading dimension.

    Raises LoadError if made-up rows get other answers together than alone; without `tries` this is
    not checked.
    """
    if not is_batchable(signature, call):
        logger.warning("%s runs unbatched: its tensors have no common batch dimension", label)
        return call
    rows = find_answered(call.run, make_up_rows(signature)) if tries else []
    tells = len(rows) > 1
    if tells and (reason := find_dependence(call.run, rows)):
        raise LoadError(f'{label} cannot be batched: {reason}; write "batching": false')
    batched = make_batched(session, signature, call, options, device)
    if call.tried:  # plan its graph now, not at the first request
        batched(*sample_inputs(signature, 0 if has_strings(signature) else 1))
    run = join_batches(call.run, batched, signature, options)
    untold = "" if tells else ", unchecked: made-up rows do not show if rows are independent"
    logger.info("%s is batched, up to %d rows%s", label, options.max_batch_size, untold)
    return call._replace(run=run, kind="batched", seconds=float("inf"))


def is_batchable(signature: Signature, call: SignatureCall) -> bool:
    """Whether all tensors have an unknown leading size and the inputs' other sizes are known."""
    inputs = [spec.shape for spec in signature.inputs.values()]
    outputs = [signature.outputs[name].shape for name in call.outputs]
    return all(shape and shape[0] is None for shape in (*inputs, *outputs)) and all(
        None not in (shape or ())[1:] for shape in inputs
    )


# --------------------------------------------------------------------------------------------------
# Whether rows can be joined
# --------------------------------------------------------------------------------------------------


def make_up_rows(signature: Signature) -> list[list[np.ndarray]]:
    """Make up inputs of one row each, at several scales; integers stay within their dtype.

    Strings are words and numbers of different lengths, not all a single word. Encoded pictures and
    Examples are not made up.
    """
    return [
        [make_up(spec, scale, seed) for spec in signature.inputs.values()]
        for seed, scale in enumerate(SCALES)
    ]


def make_up(spec: Any, scale: float, seed: int) -> np.ndarray:
    """One row for an input, of 0..`scale`; [1, ...]."""
    dtype = CARRIED[spec.dtype]
    if dtype.kind == "O":
        return np.full((1, *spec.shape[1:]), MADE_UP_TEXTS[seed], object)
    values = np.random.default_rng(seed).random((1, *spec.shape[1:])) * scale
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.round(values), limits.min, limits.max)
    return (np.round(values) if dtype.kind == "b" else values).astype(dtype)


def find_answered(run: SessionRun, rows: Rows) -> list[Sequence[np.ndarray]]:
    """The rows that get an answer; none if any row gets another answer when asked again.

    A model that draws random numbers cannot be judged, not even by rows so large that rounding
    hides the numbers.
    """
    answered = []
    for row in rows:
        once, again = ask(run, [row]), ask(run, [row])
        if bool(once) != bool(again) or once and not same(once, again):
            return []
        if once:
            answered.append(row)
    return answered


def find_dependence(run: SessionRun, rows: Rows) -> str:
    """How a row's answer depends on the rows beside it; empty if it does not.

    Each row must get an answer alone. A row among others is compared with the row among copies of
    itself: both batches have the same size, so only the others' values can make a difference.
    """
    alone = ask(run, rows[:1])
    count, together = len(rows), ask(run, rows)
    copies = [ask(run, [row] * count) for row in rows]
    if not together or not all(copies):
        return f"it fails for {count} rows together"
    if any(array.shape[:1] != (count,) for answer in (together, *copies) for array in answer):
        return f"it does not answer a row for each of {count} rows"
    for place, copied in enumerate(copies):
        if not same(pick_row(together, place), pick_row(copied, place)):
            return "a row among other rows gets another answer than alone"
    if not same(pick_row(copies[0], 0), alone):
        return f"a row in a batch of {count} gets another answer than alone"
    return ""


def pick_row(answer: Sequence[np.ndarray], place: int) -> list[np.ndarray]:
    """One row of an answer, each output [1, ...]."""
    return [array[place : place + 1] for array in answer]


def ask(run: SessionRun, rows: Rows) -> list[np.ndarray]:
    """A signature's answer to the rows in one batch; empty if it fails."""
    try:
        return run(*map(np.concatenate, zip(*rows)))
    except (tensorflow().errors.OpError, UnicodeDecodeError):
        return []


def same(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    """Whether answers are equal up to rounding, which differs between batch sizes."""
    return all(map(is_close, some, others))


def is_close(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype.kind not in "fVc" or a.shape != b.shape:
        return np.array_equal(a, b)
    tolerance = 1e-3 if a.dtype.itemsize > 2 else 2e-2
    a, b = a.astype(complex), b.astype(complex)
    largest = float(np.abs(a[np.isfinite(a)]).max(initial=0))
    return np.allclose(a, b, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


# --------------------------------------------------------------------------------------------------
# Joining
# --------------------------------------------------------------------------------------------------


def make_batched(
    session: Any, signature: Signature, call: SignatureCall, options: Batching, device: str
) -> SessionRun:
    """The signature behind TensorFlow's batch scheduler, in the same session.

    The signature's subgraph becomes the body of a batch function; variables and tables keep their
    names, so that the body uses those that the session has loaded. An extra last output, int32
    [rows], says how many rows ran at once.
    """
    tf, graph = tensorflow(), session.graph
    specs = signature.inputs.values()
    with graph.as_default(), graph.device(f"/device:{device}"):
        body = extract_sub_graph(graph.as_graph_def(), call.fetches)
        names = {node.name for node in body.node}  # lacks inputs that nothing reads

        @tf.nondifferentiable_batch_function(
            options.num_batch_threads,
            options.max_batch_size,
            options.batch_timeout_micros,
            options.sizes,
            options.max_enqueued_batches,
            autograph=False,
            # a split request that fails in part ends the process: TensorFlow joins it as floats
            enable_large_batch_splitting=False,
        )
        def batch_function(*rows: Any) -> list[Any]:
            count = tf.shape(rows[0])[0]
            fed = zip(call.feeds, rows)
            given = {feed: row for feed, row in fed if feed.partition(":")[0] in names}
            answers = tf.graph_util.import_graph_def(body, given, list(call.fetches), name="")
            return [*answers, tf.fill([count], count)]

        dtypes = [graph.get_tensor_by_name(feed).dtype for feed in call.feeds]
        placeholders = [
            tf.compat.v1.placeholder(dtype, spec.shape) for dtype, spec in zip(dtypes, specs)
        ]
        outputs = batch_function(*placeholders)
    feeds, fetches = [p.name for p in placeholders], [output.name for output in outputs]
    return make_callable(session, feeds, fetches)


def join_batches(
    plain: SessionRun, batched: SessionRun, signature: Signature, options: Batching
) -> SessionRun:
    """Send what fits a batch through `batched`, all else through `plain`.

    When a batch fails, each of its requests runs once more alone, so that only the guilty one gets
    the error. The last value is how many rows ran at once.
    """
    errors = tensorflow().errors.OpError, UnicodeDecodeError
    inner = [(spec.shape or ())[1:] for spec in signature.inputs.values()]

    def fits(arrays: Sequence[np.ndarray]) -> bool:
        rows = len(arrays[0])
        alike = all(a.shape == (rows, *shape) for a, shape in zip(arrays, inner))
        return alike and 0 < rows <= options.max_batch_size

    def run_alone(*arrays: np.ndarray) -> list[np.ndarray]:
        return [*plain(*arrays), np.asarray(len(arrays[0]))]

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        if not fits(arrays):
            return run_alone(*arrays)
        try:
            *values, counts = batched(*arrays)
        except errors:
            return run_alone(*arrays)
        return [*values, counts[0]]

    return run


EXTENSION = Extension("batching", wrap_load=wrap_load)
