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
    return np.array([(find["confidence"], find["class_id"], *find["bound"]) for find in finds], np.float32)


def read_predictions(workload, answer):
    predictions = json.loads(answer)["predictions"]
    return rows_of_finds(predictions) if workload == "ssd320" else np.array(predictions, np.float32)


def body_of_images(workload):
    """BentoML batches lists only; of pictures, too."""
    return b'{"images": [%b]}' % body_of_instances(workload) if workload == "ssd320" else body_of_instances(workload)


def read_bare(workload, answer):
    return rows_of_finds(json.loads(answer)[0]) if workload == "ssd320" else np.array(json.loads(answer), np.float32)


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
}
