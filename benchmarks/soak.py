"""A long mixed load with reloads, wrong requests and clients that leave: it checks that no answer
is wrong and that memory does not grow.

    python benchmarks/soak.py [--requests 1000000] [--connections 16] [--seed 1]

Serves the demo models, a pipeline, pictures, and one model whose versions come and go every few
seconds by POST /v1/config/reload. The right answers are known beforehand: from TensorFlow, called
directly in another process, for each body; TensorFlow Serving's statuses for wrong requests. Prints
progress, memory (USS) at each tenth, and each failure. Exit status 1 if there was one.
"""

import argparse
import collections
import io
import itertools
import json
import multiprocessing
import random
import shutil
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from load import AUTH, KEY, ROOT, Load, Served, item, spell

RELOAD_SECONDS = 3.0


@dataclass
class Case:
    """A request, how often it comes, and its only right status.

    `wanted` holds the values of each right answer.
    """

    name: str
    request: bytes
    weight: float
    status: int = 200
    wanted: tuple = ()
    leaves: bool = False
    known: set = field(default_factory=set)  # hashes of answers already found right

    def is_right(self, status, body):
        if status != self.status:
            return False
        mark = hash(body)
        if mark in self.known:
            return True
        if self.status >= 400:
            right = "error" in json.loads(body)
        elif not self.wanted:
            right = True
        else:
            numbers = read_numbers(body)
            right = any(agree(numbers, wanted) for wanted in self.wanted)
        if right and len(self.known) < 100:
            self.known.add(mark)
        return right


def agree(found, wanted):
    return np.shape(found) == np.shape(wanted) and np.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def read_numbers(body):
    """The numbers of an answer: predictions, outputs, results.

    For a picture, the confidences of its detections.
    """
    if body.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(body))
    value = next(iter(json.loads(body).values()))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [find["confidence"] for find in value]
    return np.array(value, float)


# ==================================================================================================
# What is right
# ==================================================================================================


def compute_truth(digits, pictures):
    """What TensorFlow answers: scores of digits; for pictures the scores above a half, best first.

    Runs in its own process.
    """
    import tensorflow as tf
    from PIL import Image

    model = tf.saved_model.load(str(ROOT / "models/digits/1")).signatures["serving_default"]
    ((name, _),) = model.structured_input_signature[1].items()
    scores = [next(iter(model(**{name: tf.constant(rows)}).values())).numpy() for rows in digits]
    segmenter = tf.saved_model.load(str(ROOT / "models/shapes/1")).signatures["serving_default"]
    ((name, spec),) = segmenter.structured_input_signature[1].items()
    found = []
    for path in pictures:
        image = np.asarray(Image.open(path).convert("RGB"))
        assert spec.shape[1] in (None, image.shape[0]) and spec.dtype == tf.uint8
        outputs = {
            key: value.numpy()
            for key, value in segmenter(**{name: tf.constant(image[np.newaxis])}).items()
        }
        best = next(value for key, value in outputs.items() if "score" in key)[0]
        found.append(sorted((float(score) for score in best if score > 0.5), reverse=True))
    return scores, found


def predict(model, body, **headers):
    return spell(
        "POST",
        f"/v1/models/{model}:predict",
        body if isinstance(body, bytes) else json.dumps(body).encode(),
        **headers,
    )


def make_cases(chance):
    """All requests, including wrong ones."""
    samples = np.random.default_rng(3).integers(0, 17, (20, 4, 8, 8)).astype(np.float32)
    pictures = sorted((ROOT / "models/shapes/samples").glob("*.jpg"))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        scores, found = pool.apply(compute_truth, (list(samples), pictures))
    cases = []
    for number in range(20):
        x = [round(chance.uniform(-1000, 1000), 3) for _ in range(chance.randint(1, 20))]
        half = np.array(x) / 2
        examples = json.dumps(
            {
                "signature_name": "tensorflow/serving/regress",
                "examples": [{"x": value} for value in x],
            }
        ).encode()
        cases += [
            Case(
                "half_plus_two", predict("half_plus_two", {"instances": x}), 2, wanted=(half + 2,)
            ),
            Case(
                "half_plus_three",
                predict("half_plus_three", {"inputs": [[value] for value in x]}),
                1,
                wanted=(half[:, None] + 3,),
            ),
            Case(
                "two_steps",
                predict("two_steps", {"instances": [[value] for value in x]}),
                0.3,
                wanted=((half[:, None] + 2) / 2 + 3,),
            ),
            Case(
                "versions that change",
                predict("churn", {"instances": x}),
                0.5,
                wanted=(half + 2, half + 3),
            ),
            Case(
                "regress",
                spell("POST", "/v1/models/half_plus_two:regress", examples),
                0.1,
                wanted=(half + 2,),
            ),
            Case(
                "digits",
                predict("digits", {"instances": samples[number].tolist()}),
                0.5,
                wanted=(scores[number],),
            ),
            Case(
                "digits, .npy",
                predict("digits", npy(samples[number]), Accept="application/x-npy"),
                0.1,
                wanted=(scores[number],),
            ),
        ]
    for path, wanted in zip(pictures, found):
        picture = spell(
            "POST",
            "/shapes/predict?routines="
            + urllib.request.quote(
                json.dumps([{"name": "FilterConfidence", "arguments": {"confidence": 0.5}}])
            ),
            path.read_bytes(),
            Authorization=f"Bearer {KEY}",
        )
        cases += [
            Case("picture", picture, 0.05, wanted=(wanted,)),
            Case("picture, client leaves", picture, 0.02, leaves=True),
        ]
    x = b'{"instances": [1.0, 2.0, 5.0]}'
    cases += [
        Case(name, request, 0.4, status)
        for name, request, status in (
            ("no JSON", predict("half_plus_two", b'{"instances": [1.0,'), 400),
            ("ragged", predict("half_plus_two", {"instances": [1.0, [2.0]]}), 400),
            ("strings", predict("digits", {"instances": ["a"]}), 400),
            ("wrong shape", predict("digits", {"instances": [[1.0, 2.0]]}), 400),
            ("no such model", predict("nothing", x), 404),
            ("no such version", spell("POST", "/v1/models/digits/versions/99:predict", x), 404),
            ("brackets", predict("half_plus_two", b'{"instances": ' + b"[" * 5000), 400),
            ("no key", spell("POST", "/shapes/predict", x), 401),
            (
                "no picture",
                spell(
                    "POST",
                    "/shapes/predict",
                    b"\xff\xd8\xff" + b"x" * 3000,
                    Authorization=f"Bearer {KEY}",
                ),
                400,
            ),
            ("status", spell("GET", "/v1/models/digits"), 200),
            ("no page", spell("GET", "/nowhere"), 404),
            ("ready", spell("GET", "/readyz"), 200),
        )
    ]
    cases += [
        Case("client leaves", predict("half_plus_two", x), 0.3, leaves=True),
        Case("client leaves in the middle", predict("digits", x)[:-5], 0.3, leaves=True),
        Case("metrics", spell("GET", "/metrics"), 0.02),
        Case("stats", spell("GET", "/stats"), 0.02),
    ]
    return cases


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# ==================================================================================================
# The run
# ==================================================================================================


def change_versions(server, folder, stop, changes):
    """Add versions of one model, half_plus_two and half_plus_three in turns, each moved in whole.

    Old versions are removed later.
    """
    version = 1
    while not stop.wait(RELOAD_SECONDS):
        version += 1
        source = ROOT / "models" / ("half_plus_two", "half_plus_three")[version % 2] / "123"
        shutil.copytree(source, folder / "next")
        (folder / "next").rename(folder / str(version))
        changes.append(server.reload())
        shutil.rmtree(folder / str(version - 1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    cases = make_cases(chance)
    config = json.loads((ROOT / "config.json").read_text())
    for model in config["model_config_list"]:
        model["config"]["base_path"] = str(ROOT / model["config"]["base_path"])
    config["deployments"][0]["label_map"] = str(ROOT / config["deployments"][0]["label_map"])
    server = Served(
        {
            **config,
            "auth": AUTH,
            "server": {"file_system_poll_wait_seconds": 0, "log_level": "WARNING"},
        }
    )
    churn = Path(server.folder.name, "churn")
    shutil.copytree(ROOT / "models/half_plus_three/123", churn / "1")
    config = json.loads(server.path.read_text())
    config["model_config_list"].append(item("churn", churn))
    server.path.write_text(json.dumps(config))
    server.reload()
    deck = itertools.cycle(chance.choices(cases, [case.weight for case in cases], k=100_003))
    stop, changes = threading.Event(), []
    counts, wrong = collections.Counter(), collections.Counter()

    def answered(case, status, body, took):
        counts[case.name] += 1
        if not case.leaves and not case.is_right(status, body):
            wrong[case.name, status, body[:160]] += 1

    changer = threading.Thread(target=change_versions, args=(server, churn, stop, changes))
    changer.start()
    load = Load(server.port, options.connections, lambda: next(deck), answered)
    start, memory = time.monotonic(), []
    try:
        for tenth in range(1, 11):
            load.run(count=options.requests // 10)
            memory.append(server.memory())
            seconds = time.monotonic() - start
            print(
                f"{tenth * 10} %: {counts.total()} requests, {counts.total() / seconds:.0f}/s, "
                f"{memory[-1]:.1f} MB, "
                f"{len(changes)} reloads, {wrong.total()} not as they must be",
                flush=True,
            )
    finally:
        stop.set()
        changer.join()
        load.close()
    print("\n| request | how many |\n|---|---|")
    for name, number in counts.most_common():
        print(f"| {name} | {number} |")
    for (name, status, body), number in wrong.most_common(20):
        print(f"WRONG {number} times: {name}: {status} {body!r}")
    print(
        f"\nmemory at the end: {memory[-1] / memory[0]:.4f} of what it was at a tenth; reloads: "
        f"{dict(collections.Counter(changes))}; "
        f"ended with status {server.stop()}"
    )
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
