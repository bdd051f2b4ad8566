"""Concurrent requests joined into batches by TensorFlow's own scheduler, TensorFlow Serving's.

What comes in is a signature as it is called in its session; what goes out is the call to use:
batched where its rows can be joined, else itself. Arrays are in the order of the signature's inputs
and outputs. Only what the config asks for is joined.
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
SCALES = (1.0, 255.0, -1.0, 1e4, 0.0)  # of made-up rows: numbers of 0..1, pictures, others
# Of made-up rows of strings, one for each scale: a model may see words, characters or numbers.
MADE_UP_TEXTS = (b"a", b"bb c", b"ccc dd e ff", b"123", b"56789")


def wrap(load: Load) -> Load:
    """A loader whose models join concurrent requests, where the config asks for it."""

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
    """A model whose calls are batched, in its session; not those that may keep something."""

    def join(name: str, call: SignatureCall) -> SignatureCall:
        label = f"{model.name}: signature {name}"
        if call.keeps:
            logger.warning("%s runs unbatched: its graph may keep something of a call", label)
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
    """A signature joined with others' requests; as it was where it has no common leading dimension.

    Raises LoadError where made-up rows are answered otherwise together than alone; without `tries`
    none are.
    """
    if not is_batchable(signature, call):
        logger.warning("%s runs unbatched: its tensors have no common batch dimension", label)
        return call
    rows = find_answered(call.run, make_up_rows(signature)) if tries else []
    tells = len(rows) > 1
    if tells and (reason := find_dependence(call.run, rows)):
        raise LoadError(f'{label} cannot be batched: {reason}; write "batching": false')
    batched = make_batched(session, signature, call, options, device)
    if call.tried:  # its graph is planned now, not at the first request
        batched(*sample_inputs(signature, 0 if has_strings(signature) else 1))
    run = join_batches(call.run, batched, signature, options)
    untold = "" if tells else ", though made-up rows could not tell whether theirs can be joined"
    logger.info("%s is batched, up to %d rows%s", label, options.max_batch_size, untold)
    return call._replace(run=run, kind="batched", seconds=float("inf"))


def is_batchable(signature: Signature, call: SignatureCall) -> bool:
    """Whether all tensors share a leading unknown size, the inputs' other sizes being known."""
    inputs = [spec.shape for spec in signature.inputs.values()]
    outputs = [signature.outputs[name].shape for name in call.outputs]
    return all(shape and shape[0] is None for shape in (*inputs, *outputs)) and all(
        None not in (shape or ())[1:] for shape in inputs
    )


# --------------------------------------------------------------------------------------------------
# Whether rows can be joined
# --------------------------------------------------------------------------------------------------


def make_up_rows(signature: Signature) -> list[list[np.ndarray]]:
    """Made-up inputs of one row each, of several scales; integers within their dtype.

    Strings are words and numbers, no two of one length, nor all of one word: made-up pictures and
    examples are beyond this.
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
    """Those rows that are answered; none where one is answered otherwise when it is asked again.

    What draws numbers tells nothing: not of a row so large, either, that they are lost in it.
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
    """How an answer differs among other rows; empty where it does not. Each is answered alone.

    A row among others is compared with the row among copies of itself: so many rows are computed in
    the same way, and only the others' values can make a difference.
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
            return "a row is answered otherwise among others than alone"
    if not same(pick_row(copies[0], 0), alone):
        return f"a row is answered otherwise in a batch of {count} than alone"
    return ""


def pick_row(answer: Sequence[np.ndarray], place: int) -> list[np.ndarray]:
    """One row of an answer, each output [1, ...]."""
    return [array[place : place + 1] for array in answer]


def ask(run: SessionRun, rows: Rows) -> list[np.ndarray]:
    """What a signature answers to rows together; nothing where it fails."""
    try:
        return run(*map(np.concatenate, zip(*rows)))
    except (tensorflow().errors.OpError, UnicodeDecodeError):
        return []


def same(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    """Whether answers are equal, but for the rounding that differs between batch sizes."""
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

    A last output, int32 [rows], is how many ran at once. The signature's subgraph becomes the body
    of a batch function; variables and tables keep their names, so that the body works on the very
    ones the session has loaded.
    """
    tf, graph = tensorflow(), session.graph
    specs = signature.inputs.values()
    with graph.as_default(), graph.device(f"/device:{device}"):
        body = extract_sub_graph(graph.as_graph_def(), call.fetches)
        names = {node.name for node in body.node}  # without inputs that nothing reads

        @tf.nondifferentiable_batch_function(
            options.num_batch_threads,
            options.max_batch_size,
            options.batch_timeout_micros,
            options.sizes,
            options.max_enqueued_batches,
            autograph=False,
            # half of a request that fails would end the process: TensorFlow joins it as floats
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
    the error. A last value is how many rows ran at once.
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


EXTENSION = Extension("batching", wrap_load=lambda server, load: wrap(load))
