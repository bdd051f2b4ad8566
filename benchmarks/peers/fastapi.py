"""FastAPI on uvicorn: python fastapi.py <workload> <port>"""

import sys
from pathlib import Path

# this folder's files have the names of the packages
sys.path[0] = str(Path(__file__).parent.parent)

import uvicorn  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from pydantic import BaseModel  # noqa: E402

from peers.common import Model, read_base64  # noqa: E402

app = FastAPI()
workload = sys.argv[1]
model = Model(workload)


class Batch(BaseModel):
    instances: list


class Picture(BaseModel):
    image_type: str
    data: str


if workload == "ssd320":

    @app.post("/predict")
    def detect(picture: Picture):
        return {"predictions": model.detect([read_base64(picture.data)])[0]}
else:

    @app.post("/predict")
    def predict(batch: Batch):
        return {"predictions": model.predict(batch.instances).tolist()}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]))
