"""serving on a GPU (or a CPU) against TensorFlow called directly, by model and batch; and the
stress tests that a vendor of such an API publishes.

    python benchmarks/device.py [--device GPU:0] [--seconds 3] [--models mobilenet_v2 ...]
        [--batches 1 8 32 64]
    python benchmarks/device.py --stress [--calls 100000 10000]

Direct is a loop over the signature of tf.saved_model.load in its own process. serving gets the
same arrays as raw tensors over HTTP: from 1 and from 4 connections that send whole batches, and
from one connection per row of a batch, each sending one row (batching joins them). The stress tests
follow Datature's published description: a JPEG of 640x480 in base64 from 50 connections into a
MobileNet of 320x320, 100,000 calls (theirs: 36.6/s); one of 1024x680 from 4 into a Mask R-CNN of
1024x1024, 10,000 calls (theirs: 0.364/s). Prints rows for docs/speed.md: pictures per second,
median and p99 of the milliseconds per call.
"""

import argparse
import base64
import io
import json
import multiprocessing
import time

import numpy as np
import workloads
from load import AUTH, KEY, Case, Load, Served, item, percentile, spell

MODELS = {
    "mobilenet_v2": (224, np.float32),
    "ssd320": (320, np.uint8),
    "resnet50": (224, np.float32),
    "mask_rcnn1024": (1024, np.uint8),
}


def pixels(model, rows):
    size, dtype = MODELS[model]
    numbers = np.random.default_rng(7).integers(0, 256, (rows, size, size, 3), np.uint8)
    return numbers if dtype == np.uint8 else (numbers / 255).astype(dtype)


def call_directly(model, device, batches, seconds):
    """The milliseconds of each call by batch, and the answer to one row. In its own process."""
    import tensorflow as tf

    with tf.device(device):
        loaded = tf.saved_model.load(str(workloads.base_path(model) / "1"))
        signature = loaded.signatures["serving_default"]
        ((name, _),) = signature.structured_input_signature[1].items()
        found = {}

        def answer_to(array):
            outputs = signature(**{name: tf.constant(array)})
            return {key: value.numpy() for key, value in outputs.items()}

        for rows in batches:
            array = pixels(model, rows)
            for _ in range(3):
                answer_to(array)
            found[rows], end = [], time.perf_counter() + seconds
            while time.perf_counter() < end or len(found[rows]) < 3:
                begin = time.perf_counter()
                answer = answer_to(array)
                found[rows].append(time.perf_counter() - begin)
    return found, {key: value[:1] for key, value in answer.items()}


def ask(port, model, rows, connections, seconds):
    """The seconds of each call over HTTP after a warm-up, and the last answer."""
    request = Case(
        spell(
            "POST",
            f"/v1/models/{model}:predict",
            pixels(model, rows).tobytes(),
            Accept="application/x-npz",
            X_Tensor_Dtype=np.dtype(MODELS[model][1]).name,
            X_Tensor_Shape=",".join(map(str, pixels(model, rows).shape)),
        )
    )
    took, last = [], [b""]

    def answered(_, status, body, time_taken):
        assert status == 200, (status, body[:300])
        took.append(time_taken)
        last[0] = body

    load = Load(port, connections, lambda: request, answered)
    load.run(count=2 * connections)
    took.clear()
    begin = time.perf_counter()
    load.run(seconds=seconds)
    spent = time.perf_counter() - begin
    load.close()
    return took, spent, dict(np.load(io.BytesIO(last[0])))


def config_of(model, device):
    entry = item(model, workloads.base_path(model))
    entry["config"]["target_device"] = device
    return {"model_config_list": [entry]}


def cell(rate, seconds):
    return (
        f"{rate:.1f} ({1000 * percentile(seconds, 0.5):.1f} / "
        f"{1000 * percentile(seconds, 0.99):.1f})"
    )


def compare(model, options):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        direct, reference = pool.apply(
            call_directly, (model, options.device, options.batches, options.seconds)
        )
    server = Served(
        {**config_of(model, options.device), "server": {"file_system_poll_wait_seconds": 0}}
    )
    try:
        for rows in options.batches:
            cells = [cell(rows / percentile(direct[rows], 0.5), direct[rows])]
            for sent, connections in ((rows, 1), (rows, 4), (1, rows)):
                took, spent, answer = ask(server.port, model, sent, connections, options.seconds)
                cells.append(cell(len(took) * sent / spent, took))
            if rows == max(options.batches):
                scores = next(key for key in reference if reference[key].ndim == 2)
                name = scores if scores in answer else "output"
                assert np.allclose(answer[name][:1], reference[scores], rtol=2e-2, atol=2e-3), (
                    "serving answers otherwise than TensorFlow"
                )
            print(f"| {model} | {rows} | {' | '.join(cells)} |", flush=True)
    finally:
        server.stop()


def jpeg(width, height):
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(workloads.sample("ssd320"))).resize((width, height)).save(
        buffer, "JPEG", quality=88
    )
    return buffer.getvalue()


def stress(model, size, connections, calls, device):
    """Calls per second, their latency, and how many failed."""
    server = Served(
        {**config_of(model, device), "deployments": [{"id": "d", "model": model}], "auth": AUTH}
    )
    body = json.dumps(
        {"image_type": "base64", "data": base64.b64encode(jpeg(*size)).decode()}
    ).encode()
    request = Case(
        spell(
            "POST",
            "/d/predict",
            body,
            Authorization=f"Bearer {KEY}",
            Content_Type="application/json",
        )
    )
    took, failed = [], []

    def answered(_, status, body, seconds):
        (took if status == 200 else failed).append(seconds)
        if len(took) % 1000 == 0:
            print(f"{len(took)} of {calls} calls", flush=True)

    try:
        load, begin = Load(server.port, connections, lambda: request, answered), time.perf_counter()
        load.run(count=calls)
        spent = time.perf_counter() - begin
        print(
            f"| {model}, {size[0]}x{size[1]}, {connections} at a time | {calls} | {len(failed)} "
            f"| {calls / spent:.2f}/s | "
            f"{1000 * percentile(took, 0.5):.0f} / {1000 * percentile(took, 0.99):.0f} ms | "
            f"{server.memory():.0f} MB |",
            flush=True,
        )
    finally:
        server.stop()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="GPU:0")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 64])
    parser.add_argument("--stress", action="store_true")
    parser.add_argument("--calls", nargs=2, type=int, default=[100_000, 10_000])
    options = parser.parse_args()
    workloads.make_all(options.models)
    if options.stress:
        print(
            "| stress test | calls | failed | rate | p50 / p99 | memory "
            "|\n|---|---|---|---|---|---|"
        )
        tests = (
            ("ssd320", (640, 480), 50, options.calls[0]),
            ("mask_rcnn1024", (1024, 680), 4, options.calls[1]),
        )
        for model, size, connections, calls in tests:
            if model in options.models and calls:
                stress(model, size, connections, calls, options.device)
        return
    print(
        "| model | batch | TensorFlow, directly | serving, 1 connection | 4 connections | rows "
        "one by one |\n|---|---|---|---|---|---|"
    )
    for model in options.models:
        compare(model, options)


if __name__ == "__main__":
    main()
