"""What a call costs inside the process: our way into TensorFlow against the signature of
`tf.saved_model.load`.

    python benchmarks/call.py [rounds]

Microseconds per call, one row, NumPy in and out, one thread; the ways take turns, medians are
printed. The answers of the two are compared first.
"""

import os
import statistics
import sys
import time

from load import ROOT

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

import serving  # noqa: E402


def microseconds(call, calls=500):
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e6


def ways_to_call(tf, server, model):
    """The ways by name: each a function without arguments."""
    version, servable = next(iter(server.manager.available[model].versions.items()))
    signature = servable.signatures["serving_default"]
    inputs = dict(zip(signature.inputs, serving.sample_inputs(signature, 1)))
    direct = tf.saved_model.load(str(ROOT / "models" / model / str(version))).signatures[
        "serving_default"
    ]
    body = serving.encode_json({"inputs": inputs})
    return {
        "tf.saved_model.load signature": lambda: {
            name: tensor.numpy()
            for name, tensor in direct(
                **{name: tf.constant(array) for name, array in inputs.items()}
            ).items()
        },
        "serving, arrays in and out": lambda: servable.run("serving_default", inputs),
        "serving, JSON in and out": lambda: serving.encode_json(
            server.predict(model, serving.parse_json(body))
        ),
    }


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    tf = serving.tensorflow()
    server = serving.ModelServer(ROOT / "config.json", poll_seconds=0)
    server.wait()
    for model in ("half_plus_two", "digits"):
        ways = ways_to_call(tf, server, model)
        theirs, ours = (way() for way in list(ways.values())[:2])
        assert all(np.allclose(ours[name], theirs[name], rtol=1e-5) for name in theirs), (
            "the answers differ"
        )
        times = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                times[name].append(microseconds(way))
        base = statistics.median(times["tf.saved_model.load signature"])
        for name, values in times.items():
            print(
                f"{model:14} {name:30} {statistics.median(values):8.1f} us "
                f"{base / statistics.median(values):6.1f}x",
                flush=True,
            )
    server.stop()


if __name__ == "__main__":
    main()
