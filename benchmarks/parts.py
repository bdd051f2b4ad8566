"""serving against TensorFlow called directly, in one process, part by part: body to tensors, model,
answer to bytes.

    python benchmarks/parts.py [--seconds 2] [workload ...]

By hand is what the guides show: json.loads, np.array, the signature of tf.saved_model.load, tolist,
json.dumps. The two take turns; the median milliseconds of each part are printed. With --rate only
the calls per second of the model alone, by 2 threads, for each line of the input.
"""

import argparse
import base64
import contextlib
import gc
import itertools
import json
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import workloads
from load import ROOT, item
from peers.catalogue import body_of_instances
from peers.common import Model

sys.path.insert(0, str(ROOT))

import serving  # noqa: E402

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def ours(workload):
    """A server of the workload, and its parts of a call: each a function of
    the result of the part before.
    """
    import routines

    server = serving.ModelServer(
        {
            "model_config_list": [item(workload, workloads.base_path(workload))],
            "deployments": [{"id": "d", "model": workload}] * (workload == "ssd320"),
        }
    )
    assert server.wait(120)
    _, servable = server.manager.find(workload, None, None)
    signature = servable.signatures["serving_default"]
    limits = serving.image_limits(server.config, lambda size: None)
    if workload == "ssd320":
        seen = server.prepared.deployments["d"].model_of(servable)

        def read(body):
            picture, _ = routines.read_request(serving.parse_json(body), limits)
            return {seen.shown.name: seen.shown.show(picture)[0]}

        def write(outputs):
            return serving.encode_json(
                routines.present(
                    routines.run_after((), seen.read(outputs)),
                    np.zeros((480, 640, 3), np.uint8),
                    {},
                )
            )
    else:

        def read(body):
            value = serving.read_large_json(body) if len(body) >= serving.PLAIN_BYTES else None
            return serving.decode_rows(signature, (value or serving.parse_json(body))["instances"])

        def write(outputs):
            return serving.encode_json({"predictions": serving.encode_rows(signature, outputs)})

    return server, (read, lambda inputs: servable.run("serving_default", inputs), write)


def by_hand(workload):
    """The same parts, done as the guides show."""
    model = Model(workload)

    def read(body):
        value = json.loads(body)
        if workload == "ssd320":
            return workloads.read_jpeg(base64.b64decode(value["data"]))[np.newaxis]
        return np.array(value["instances"], model.dtype)

    def write(outputs):
        if workload != "ssd320":
            return json.dumps({"predictions": next(iter(outputs.values())).tolist()}).encode()
        rows = zip(
            *(outputs[f"detection_{name}"][0].tolist() for name in ("boxes", "scores", "classes"))
        )
        finds = [
            {"bound": box, "class_id": int(class_), "confidence": score}
            for box, score, class_ in rows
        ]
        return json.dumps({"predictions": finds}).encode()

    return model, (read, model.run, write)


def time_parts(parts, value):
    """Milliseconds of each part, given the result of the part before."""
    times = []
    for part in parts:
        start = time.perf_counter()
        value = part(value)
        times.append(1e3 * (time.perf_counter() - start))
    return times


def compare(workload, seconds):
    body = body_of_instances(workload)
    sides = {"serving": ours(workload), "by hand": by_hand(workload)}
    gc.collect()
    gc.freeze()  # for both sides: serving freezes its own anyway
    found = {name: [] for name in sides}
    for side in sides.values():
        time_parts(side[1], body)
    end = time.perf_counter() + 2 * seconds
    while time.perf_counter() < end:
        for name, (_, parts) in sides.items():
            found[name].append(time_parts(parts, body))
    print(
        f"\n| {workload} | body to tensors, ms | model, ms | answer to bytes, ms | together, ms "
        "|\n|---|---|---|---|---|"
    )
    medians = {
        name: [statistics.median(column) for column in zip(*times)] for name, times in found.items()
    }
    for name, parts in medians.items():
        print(f"| {name} | {' | '.join(f'{part:.3g}' for part in (*parts, sum(parts)))} |")
    hand, own = medians["by hand"], medians["serving"]
    print(
        "| times as fast | "
        f"{' | '.join(f'{a / b:.1f}' for a, b in zip((*hand, sum(hand)), (*own, sum(own))))} |",
        flush=True,
    )


def answer_lines(workload, seconds):
    """Measure and print the calls per second of the model alone, for each line of the input."""
    server, (read, call, _) = ours(workload)
    inputs = read(body_of_instances(workload))
    for _ in range(5):
        call(inputs)
    for _ in sys.stdin:
        print(f"{rate(call, inputs, seconds):.1f}", flush=True)


def rate(call, inputs, seconds):
    """Calls per second by two threads."""
    end = time.perf_counter() + seconds

    def go(_):
        for count in itertools.count():
            call(inputs)
            if time.perf_counter() >= end:
                return count

    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        count = sum(pool.map(go, range(2)))
    return count / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workloads", nargs="*", default=list(workloads.WORKLOADS))
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rate", action="store_true")
    options = parser.parse_args()
    workloads.make_all()
    for workload in options.workloads:
        if options.rate:
            answer_lines(workload, options.seconds)
        else:
            compare(workload, options.seconds)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
    os._exit(0)  # TensorFlow takes a second to end
