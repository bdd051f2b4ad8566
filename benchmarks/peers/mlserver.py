"""MLServer with a runtime of our own: python mlserver.py <workload> <port>"""

import json
import os
import sys
import tempfile
from pathlib import Path

# this folder's files have the names of the packages
sys.path[0] = str(Path(__file__).parent.parent)

from mlserver import MLModel  # noqa: E402
from mlserver.codecs import NumpyCodec, StringCodec  # noqa: E402
from mlserver.types import InferenceRequest, InferenceResponse  # noqa: E402

from peers.common import BATCH, WAIT_MS, Model, read_base64  # noqa: E402


class Runtime(MLModel):
    async def load(self) -> bool:
        self.model = Model(self.name)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        (input_,) = payload.inputs
        if self.name == "ssd320":
            outputs = self.model.detect_arrays(
                [read_base64(text) for text in StringCodec.decode_input(input_)]
            )
        else:
            outputs = self.model.run(NumpyCodec.decode_input(input_))
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(*output) for output in outputs.items()],
        )


def main(workload, port):
    folder = Path(tempfile.mkdtemp()) / workload
    folder.mkdir()
    settings = {
        "host": "127.0.0.1",
        "http_port": int(port),
        "grpc_port": 0,
        "metrics_endpoint": None,
        "debug": False,
    }
    model = {
        "name": workload,
        "implementation": "peers.mlserver.Runtime",
        "max_batch_size": BATCH[workload],
        "max_batch_time": WAIT_MS / 1e3,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    os.environ["PYTHONPATH"] = sys.path[0]
    os.execv(
        sys.executable,
        [sys.executable, "-c", "from mlserver.cli import main; main()", "start", str(folder)],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
