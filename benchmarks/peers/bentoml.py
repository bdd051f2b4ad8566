"""BentoML: python bentoml.py <workload> <port>"""

import os
import sys
from pathlib import Path
from typing import Annotated

# this folder's files have the names of the packages
sys.path[0] = str(Path(__file__).parent.parent)

import bentoml  # noqa: E402
import numpy as np  # noqa: E402
from bentoml.validators import DType  # noqa: E402
from pydantic import BaseModel  # noqa: E402

from peers.common import BATCH, Model, read_base64  # noqa: E402

# BentoML's workers import this file with arguments of their own
workload = os.environ.setdefault("PEER_WORKLOAD", sys.argv[1])
# here batches are counted in rows
ROWS = {"half_plus_two": 64, "mlp784": 64}.get(workload, BATCH.get(workload))


class Picture(BaseModel):
    image_type: str
    data: str


@bentoml.service
class Rows:
    def __init__(self):
        self.model = Model(workload)

    @bentoml.api(batchable=True, max_batch_size=ROWS)
    def predict(self, instances: Annotated[np.ndarray, DType("float32")]) -> np.ndarray:
        return self.model.predict(instances)


@bentoml.service
class Pictures:
    def __init__(self):
        self.model = Model(workload)

    @bentoml.api(batchable=True, max_batch_size=ROWS)
    def predict(self, images: list[Picture]) -> list[list[dict]]:
        return self.model.detect([read_base64(image.data) for image in images])


if __name__ == "__main__":
    service = "Pictures" if workload == "ssd320" else "Rows"
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    os.setsid = lambda: None  # else its workers leave the process group, and outlive it
    os.chdir(sys.path[0])
    from bentoml_cli.cli import cli

    cli(["serve", f"peers.bentoml:{service}", "--host", "127.0.0.1", "--port", sys.argv[2]])
