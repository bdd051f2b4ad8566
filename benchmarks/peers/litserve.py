"""LitServe: python litserve.py <workload> <port>"""

import sys
from pathlib import Path

# this folder's files have the names of the packages
sys.path[0] = str(Path(__file__).parent.parent)

import litserve as ls  # noqa: E402

from peers.common import BATCH, WAIT_MS, Model, read_base64  # noqa: E402


class Rows(ls.LitAPI):
    def setup(self, device):
        self.model = Model(sys.argv[1])

    def decode_request(self, request):
        return request["instances"]

    def batch(self, inputs):
        return inputs  # joined by predict: requests may have several rows each

    def predict(self, batches):
        return self.model.predict_each(batches)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return {"predictions": output.tolist()}


class Pictures(Rows):
    def decode_request(self, request):
        return read_base64(request["data"])

    def predict(self, pictures):
        return self.model.detect(pictures)

    def encode_response(self, output):
        return {"predictions": output}


if __name__ == "__main__":
    api = (Pictures if sys.argv[1] == "ssd320" else Rows)(
        max_batch_size=BATCH[sys.argv[1]], batch_timeout=WAIT_MS / 1e3
    )
    ls.LitServer(api, accelerator="cpu").run(
        host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False
    )
