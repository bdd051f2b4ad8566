"""The peers: what each needs installed, where and how it is asked, and how its answers are read."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import workloads


def jpeg_text():
    return base64.b64encode(workloads.sample("ssd320")).decode()


def body_of_instances(workload):
    if workload == "ssd320":
        return json.dumps({"image_type": "base64", "data": jpeg_text()}).encode()
    return json.dumps({"instances": workloads.sample(workload).tolist()}).encode()


def rows_of_finds(finds):
    """Detections as float32 [100, 6]: score, class, ymin, xmin, ymax, xmax."""
    return np.array(
        [(find["confidence"], find["class_id"], *find["bound"]) for find in finds], np.float32
    )


def read_predictions(workload, answer):
    predictions = json.loads(answer)["predictions"]
    return rows_of_finds(predictions) if workload == "ssd320" else np.array(predictions, np.float32)


def body_of_images(workload):
    """BentoML batches lists only; of pictures, too."""
    return (
        b'{"images": [%b]}' % body_of_instances(workload)
        if workload == "ssd320"
        else body_of_instances(workload)
    )


def read_bare(workload, answer):
    return (
        rows_of_finds(json.loads(answer)[0])
        if workload == "ssd320"
        else np.array(json.loads(answer), np.float32)
    )


def v2_path(workload):
    return f"/v2/models/{workload}/infer"


def v2_body(workload):
    """One input, of the V2 protocol, with the batch as its first dimension.

    Triton wants a second one.
    """
    if workload == "ssd320":
        input_ = {"name": "pictures", "shape": [1, 1], "datatype": "BYTES", "data": [jpeg_text()]}
    else:
        rows = (
            workloads.sample(workload).reshape(3, 1)
            if workload == "half_plus_two"
            else workloads.sample(workload)
        )
        input_ = {
            "name": "rows",
            "shape": rows.shape,
            "datatype": "FP32",
            "data": rows.ravel().tolist(),
        }
    return json.dumps({"inputs": [input_]}).encode()


def read_v2(workload, answer):
    arrays = {
        output["name"]: np.array(output["data"], np.float32).reshape(output["shape"])
        for output in json.loads(answer)["outputs"]
    }
    if workload == "ssd320":
        return np.column_stack([arrays[name][0] for name in ("scores", "classes", "boxes")])
    (array,) = arrays.values()
    return array.ravel() if workload == "half_plus_two" else array


@dataclass(frozen=True)
class Peer:
    """One server to compare with; the functions take the workload first."""

    packages: tuple[str, ...]
    path: Callable[[str], str] = lambda workload: "/predict"
    body: Callable[[str], bytes] = body_of_instances
    read: Callable[[str, bytes], np.ndarray] = read_predictions


PEERS: dict[str, Peer] = {
    "fastapi": Peer(("fastapi==0.165.0", "uvicorn[standard]==0.54.0")),
    "flask": Peer(("flask==3.1.3", "waitress==3.0.2")),
    "litserve": Peer(("litserve==0.2.19",)),
    "bentoml": Peer(("bentoml==1.4.40",), body=body_of_images, read=read_bare),
    # its workers do not start with later uvloops
    "mlserver": Peer(("mlserver==1.7.1", "uvloop==0.21.0"), v2_path, v2_body, read_v2),
    "pytriton": Peer(("nvidia-pytriton==0.7.0",), v2_path, v2_body, read_v2),
    "ray": Peer(("ray[serve]==2.60.0",)),
}

# serving itself, behind another WSGI server than its own
DOORS: dict[str, Peer] = {
    "granian": Peer(("granian==2.8.9",)),
    "gunicorn": Peer(("gunicorn==27.0.1",)),
}
