"""Coverage-guided fuzzing of what reads other people's bytes, with atheris (`pip install atheris`; CPython up to 3.13, Linux).

    python tests/fuzz.py tensors|images|config|routines [--runs 1000000] [--seed 1] [--corpus FOLDER]

Each target answers any bytes, or refuses them with an error of its own. Whatever else is raised, a difference between two paths that
must agree, or more than a second of the processor, ends the run, and the input is written to `crash-...` in the current folder. The
seeds lie in tests/data/fuzz; an input that has found something is kept there, and test_fuzz.py tries them all at each run of the tests.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

SEEDS = Path(__file__).parent / "data" / "fuzz"
ROOT = Path(__file__).parent.parent
SECONDS = 1.0
LARGE = 16  # bytes of arrays that go the way of large ones: inputs of a fuzzer are short

if (
    __name__ == "__main__"
):  # what is imported from here on tells the fuzzer which lines it has reached
    import atheris

    sys.path.insert(0, str(ROOT))
    with atheris.instrument_imports(include=["serving", "serving_extensions", "routines", "PIL"]):
        import routines
        import serving
        from serving_extensions import binary
else:
    import routines
    import serving
    from serving_extensions import binary

import numpy as np  # noqa: E402

# ==================================================================================================
# Values from bytes
# ==================================================================================================


class Bytes:
    """Reads choices out of a fuzzer's bytes; nothing is left: zeros."""

    def __init__(self, data):
        self.data, self.place = data, 0

    def number(self, most):
        """0 to `most` - 1."""
        byte = self.data[self.place] if self.place < len(self.data) else 0
        self.place += 1
        return byte % most

    def choose(self, values):
        return values[self.number(len(values))]

    def text(self):
        size = self.number(12)
        self.place += size
        return self.data[self.place - size : self.place].decode("utf-8", "replace")

    def left(self):
        return self.place < len(self.data)


NUMBERS = (
    0,
    1,
    -1,
    0.5,
    255,
    256,
    2**31,
    -(2**63),
    2**63,
    2**64,
    1e308,
    -0.0,
    1e-320,
    3.5,
    100,
    1000,
)
WORDS = {
    "config": (
        "model_config_list",
        "config",
        "name",
        "base_path",
        "m",
        "models/half_plus_two",
        "model_version_policy",
        "latest",
        "num_versions",
        "specific",
        "versions",
        "all",
        "version_labels",
        "stable",
        "target_device",
        "AUTO",
        "GPU:0",
        "CPU",
        "batching",
        "max_batch_size",
        "allowed_batch_sizes",
        "batch_timeout_micros",
        "server",
        "threads",
        "port",
        "host",
        "log_format",
        "json",
        "protect",
        "all",
        "timeout_seconds",
        "memory_budget_mb",
        "deployments",
        "id",
        "model",
        "label_map",
        "family",
        "outputs",
        "routines",
        "arguments",
        "version",
        "auth",
        "keys",
        "sha256",
        "expires",
        "quota",
        "calls",
        "period",
        "month",
        "quota_store",
        "redis://localhost",
        "handlers",
        "path",
        "/h",
        "function",
        "os:getcwd",
        "envelope",
        "pipeline_config_list",
        "inputs",
        "nodes",
        "node_name",
        "type",
        "DL model",
        "model_name",
        "data_item",
        "request",
        "load",
        "on_demand",
        "idle_seconds",
        "pinned",
        "instances",
        "images",
        "max_bytes",
        "allowed_hosts",
        "active_learning",
        "folder",
        "$schema",
        "default_deployment",
        "intra_op_threads",
        "file_system_poll_wait_seconds",
        "a" * 64,
        "2030-01-01",
        "custom_loader_config_list",
    ),
    "routines": (
        "name",
        "arguments",
        *sorted(routines.ROUTINES),
        "confidence",
        "iou",
        "class_name",
        "Threshold",
        "width",
        "height",
        "left",
        "top",
        "right",
        "bottom",
        "strategy",
        "group",
        "threshold",
        "bins",
        "circle",
        "square",
        "entropy",
        "x",
        "y",
        "format",
        "minimum",
        "maximum",
        "per_class",
    ),
}


def build(source, words, depth=0):
    """A JSON value: objects with keys that mean something, most of them."""
    kind = source.number(8) if depth < 7 and source.left() else source.number(5)
    if kind in (5, 6):
        return {
            source.choose(words): build(source, words, depth + 1) for _ in range(source.number(5))
        }
    if kind == 7:
        return [build(source, words, depth + 1) for _ in range(source.number(4))]
    return (
        source.choose(NUMBERS),
        source.choose(words),
        source.choose((None, True, False)),
        source.text(),
        source.number(256) - 128,
    )[kind]


# ==================================================================================================
# Targets
# ==================================================================================================

DTYPES = (
    "DT_FLOAT",
    "DT_INT64",
    "DT_UINT8",
    "DT_STRING",
    "DT_BOOL",
    "DT_DOUBLE",
    "DT_UINT64",
    "DT_HALF",
    "DT_INT8",
    "DT_BFLOAT16",
    "DT_INT32",
    "DT_COMPLEX64",
)


def echo(names, dtype):
    specs = {name: serving.TensorSpec(name, name + ":0", dtype, None) for name in names}
    return serving.Servable(
        {"serving_default": serving.Signature(specs, specs)}, lambda name, inputs: inputs
    )


ECHOES = [echo(names, dtype) for dtype in DTYPES for names in (("x",), ("a", "b"))]


def outcome(servable, read):
    """An answer as JSON, or the text of its refusal."""
    try:
        value = read()
        if value is None:
            return None
        return serving.encode_json(serving.predict(servable, serving.signature_name(value), value))
    except serving.ServingError as error:
        return error.code, error.message


def fuzz_tensors(data):
    """A body of :predict: the way of large arrays answers as the plain one does, or leaves it to that; the answer reads back."""
    servable, body = ECHOES[data[0] % len(ECHOES)] if data else ECHOES[0], data[1:]
    plain = outcome(servable, lambda: serving.parse_json(body))
    large = outcome(servable, lambda: serving.read_large_json(body))
    if isinstance(large, bytes):
        assert large == plain, f"{large!r} and {plain!r}"
    if isinstance(plain, bytes):
        json.loads(plain.decode("utf-8", "replace"))  # strings go out as the bytes they are


def fuzz_binary(data):
    """.npy, .npz and raw serving."""
    source = Bytes(data)
    way = source.number(4)
    try:
        if way:
            unpacked = serving.UnpackedBytes(lambda: 1 << 26)
            found = binary.load_arrays(data[1:], serving.Allowance(unpacked, 1 << 26))
        else:
            dtype, shape = (
                source.choose(("float32", "int64", "bool", "half", "bfloat16", "x")),
                source.text(),
            )
            found = binary.read_raw(data[source.place :], dtype, shape)
        for array in found.values() if isinstance(found, dict) else [found]:
            assert isinstance(array, np.ndarray) and not array.dtype.hasobject
    except serving.ServingError:
        pass


LIMITS = routines.ImageLimits(max_bytes=1 << 20, max_pixels=250_000, allowed_hosts=())


def nowhere(*_args, **_options):
    raise OSError("there is no network here")


def fuzz_images(data):
    """A picture's file, .npy, base64 or array: uint8 RGB, or a reason. One in four is arrays of the other kinds."""
    way, data = data[0] % 8 if data else 0, data[1:]
    try:
        if way == 7:
            return fuzz_binary(data)
        if way == 6:
            picture, _ = routines.read_request(serving.parse_json(data), LIMITS)
        elif way == 5:
            picture = routines.decode_text(data.decode("latin-1"), LIMITS)
        else:
            picture = routines.read_bytes(
                data,
                LIMITS,
                ("", "", "image/png", "application/octet-stream", "application/x-npy")[way],
            )
    except (routines.ImageError, serving.ServingError):
        return None
    assert (
        picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.size
    )
    return None


def fuzz_config(data):
    """The text of a config, and a label map."""
    source = Bytes(data)
    way = source.number(4)
    if way == 3:
        with contextlib.suppress(ValueError):
            routines.read_label_map(data[1:].decode("utf-8", "replace"))
        return
    text = data[1:] if way == 2 else json.dumps(build(source, WORDS["config"])).encode()
    try:
        config = serving.load_config("/nowhere/config.json", text)
    except serving.ConfigError as error:
        assert str(error).startswith("$"), error  # the place, always
        return
    assert serving.load_config("/nowhere/config.json", text) == config
    assert all(isinstance(name, str) for name in config.served_names)


TENSORS = {
    "boxes": np.array([[0.1, 0.1, 0.4, 0.4], [0.1, 0.1, 0.41, 0.41], [0, 0, 1, 1]]),
    "scores": np.array([0.9, 0.8, 0.3]),
    "names": np.array(["circle", "circle", "square"], object),
    "classes": np.array([1, 1, 2]),
}
IMAGE = np.arange(24 * 16 * 3, dtype=np.uint8).reshape(24, 16, 3)
LABELS = {1: "circle", 2: "square"}


def fuzz_routines(data):
    """Routines of a request, their arguments, and what they make of three finds on a small picture."""
    source = Bytes(data)
    if source.number(2):
        value = build(source, WORDS["routines"])
        value = (
            value
            if source.number(2)
            else [{"name": source.choose(WORDS["routines"]), "arguments": value}]
        )
    else:
        try:
            value = serving.parse_json(data[1:])
        except serving.ServingError:
            return
    try:
        chain = serving.read_chain(value, routines.ROUTINES)
    except serving.ConfigError:
        return
    try:
        shown, region = routines.run_before([step for step in chain if step.before_model], IMAGE)
        found = {name: array.copy() for name, array in TENSORS.items()}
        found["boxes"] = routines.place_boxes(found["boxes"], region)
        found = routines.run_after(chain, found)
        answer = serving.encode_json(routines.present(found, IMAGE, LABELS))
        assert shown.dtype == np.uint8 and all(
            0 <= find["confidence"] <= 1 for find in json.loads(answer).get("predictions", [])
        )
    except routines.ImageError:
        return


TARGETS = {
    "tensors": fuzz_tensors,
    "images": fuzz_images,
    "config": fuzz_config,
    "routines": fuzz_routines,
}


def prepare():
    """Short arrays go both ways; nothing is fetched."""
    serving.LARGE = LARGE
    routines.fetch_image.__defaults__ = (nowhere,)


def try_input(target, data):
    """Run a target over one input; AssertionError when it takes too long."""
    begin = time.thread_time()
    TARGETS[target](data)
    seconds = time.thread_time() - begin
    assert seconds < SECONDS, f"took {seconds:.1f} s"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", help="a folder beside the seeds that grows from run to run")
    options = parser.parse_args()
    prepare()
    folder = options.corpus or tempfile.mkdtemp()  # what is found new goes into the first one
    os.makedirs(folder, exist_ok=True)
    atheris.Setup(
        [
            sys.argv[0],
            folder,
            str(SEEDS / options.target),
            f"-runs={options.runs}",
            f"-seed={options.seed}",
            "-timeout=30",
            "-rss_limit_mb=4096",
            f"-max_len={4096 if options.target in ('tensors', 'images') else 512}",
            "-print_final_stats=1",
        ],
        lambda data: try_input(options.target, data),
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
