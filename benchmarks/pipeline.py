"""What a pipeline saves over HTTP: one call of it against a client that calls each of its models in
turn.

    python benchmarks/pipeline.py [rounds]

Measures the demo's two_steps, and shape_kinds of examples/crops, whose client cuts the crops itself
and sends them all in one call, as JSON numbers or as PNG files. One server per config, kept-alive
connections, a thread for each; the ways take turns in rounds of two seconds. Prints the medians of
calls per second and of the ratio to the pipeline round by round. Client and server share the
machine. The answers of the ways are compared first.
"""

import base64
import http.client
import itertools
import json
import statistics
import sys
import threading
import time

from load import ROOT, Served

sys.path.insert(0, str(ROOT / "examples" / "crops"))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from crops import crop_boxes  # noqa: E402

SECONDS = 2.0
PIPELINE = "pipeline"
PARAMS = {"confidence": "0.3", "size": "32"}  # as in the example's config


# The ways: each a function of `post(model, body)` and a case that returns an array.


def ask_two_steps(post, x):
    return np.array(post("two_steps", {"instances": x})["predictions"])


def ask_each_step(post, x):
    middle = post("half_plus_two", {"instances": x})["predictions"]
    return np.array(post("half_plus_three", {"instances": middle})["predictions"])


def ask_shape_kinds(post, case):
    """Kinds [K, 4] of a picture."""
    return np.array(
        post("shape_kinds", {"inputs": {"image": {"b64": case[0]}}})["outputs"]["kinds"]
    )[:, 0]


def crop_found(post, case):
    """Crops float32 [K, 32, 32, 3] of what the detector finds, cut by the client."""
    content, pixels = case
    found = post("shapes", {"inputs": {"input_tensor": {"b64": content}}})["outputs"]
    boxes, scores = (
        np.array(found[name], np.float32) for name in ("detection_boxes", "detection_scores")
    )
    return crop_boxes({"image": pixels, "boxes": boxes, "scores": scores}, PARAMS)["crops"][:, 0]


def ask_with_numbers(post, case):
    return np.array(
        post("kinds", {"inputs": {"crops": crop_found(post, case).tolist()}})["outputs"]
    )


def ask_with_files(post, case):
    files = [
        cv2.imencode(".png", crop[..., ::-1].astype(np.uint8))[1].tobytes()
        for crop in crop_found(post, case)
    ]
    return np.array(
        post("kinds", {"instances": [{"b64": base64.b64encode(file).decode()} for file in files]})[
            "predictions"
        ]
    )


def read_samples():
    """Each sample picture in base64, and as pixels uint8 [1, H, W, 3]."""
    for path in sorted((ROOT / "models" / "shapes" / "samples").glob("*.jpg")):
        content = path.read_bytes()
        yield (
            base64.b64encode(content).decode(),
            cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[np.newaxis, ..., ::-1],
        )


# The client.


def connect(port):
    """A function that posts a predict body to a model over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def post(model, body):
        connection.request(
            "POST", f"/v1/models/{model}:predict", json.dumps(body, separators=(",", ":"))
        )
        response = connection.getresponse()
        answer = response.read()
        assert response.status == 200, (response.status, answer)
        return json.loads(answer)

    return post


def measure(way, posts, cases, seconds=SECONDS):
    """Calls per second over connections used side by side."""
    done, start = [0] * len(posts), time.perf_counter()

    def work(number):
        for case in itertools.islice(itertools.cycle(cases), number, None):
            way(posts[number], case)
            done[number] += 1
            if time.perf_counter() - start > seconds:
                return

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(posts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - start)


# The comparison.


def check(ways, post, cases):
    for case in cases:
        expected = ways[PIPELINE](post, case)
        assert all(np.allclose(way(post, case), expected, atol=1e-4) for way in ways.values()), (
            "the answers differ"
        )


def compare(name, config, ways, cases, rounds):
    server = Served(config)
    try:
        check(ways, connect(server.port), cases)
        for connections in (1, 8):
            posts = [connect(server.port) for _ in range(connections)]
            rates = {way: [] for way in ways}
            for way in ways.values():
                measure(way, posts, cases, SECONDS / 4)
            for round_ in range(rounds):
                for way, ask in ways.items():
                    rates[way].append(measure(ask, posts, cases))
                print(
                    f"{name}, connections: {connections}, round {round_ + 1} of {rounds}: "
                    + ", ".join(f"{way} {values[-1]:.1f}/s" for way, values in rates.items()),
                    file=sys.stderr,
                    flush=True,
                )
            report(name, connections, rates)
    finally:
        server.stop()


def report(name, connections, rates):
    for way, values in rates.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(rates[PIPELINE], values))
        rate = statistics.median(values)
        print(
            f"{name:12} connections: {connections}  {way:30} {rate:7.1f} calls/s "
            f"{1000 * connections / rate:8.2f} ms   "
            f"pipeline is {ratio:.2f}x",
            flush=True,
        )


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    compare(
        "two_steps",
        ROOT / "config.json",
        {PIPELINE: ask_two_steps, "one by one": ask_each_step},
        [[[float(number)]] for number in range(10)],
        rounds,
    )
    compare(
        "shape_kinds",
        ROOT / "examples" / "crops" / "config.json",
        {
            PIPELINE: ask_shape_kinds,
            "one by one, crops as numbers": ask_with_numbers,
            "one by one, crops as PNG": ask_with_files,
        },
        list(read_samples()),
        rounds,
    )


if __name__ == "__main__":
    main()
