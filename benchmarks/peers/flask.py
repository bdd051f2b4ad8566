"""Flask on waitress: python flask.py <workload> <port>"""

import sys
from pathlib import Path

# this folder's files have the names of the packages
sys.path[0] = str(Path(__file__).parent.parent)

import waitress  # noqa: E402
from flask import Flask, jsonify, request  # noqa: E402

from peers.common import Model, read_base64  # noqa: E402

app = Flask(__name__)
workload = sys.argv[1]
model = Model(workload)


@app.post("/predict")
def predict():
    body = request.get_json()
    if workload == "ssd320":
        return jsonify(predictions=model.detect([read_base64(body["data"])])[0])
    return jsonify(predictions=model.predict(body["instances"]).tolist())


if __name__ == "__main__":
    waitress.serve(app, host="127.0.0.1", port=int(sys.argv[2]), threads=8)
