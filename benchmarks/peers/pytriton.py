"""PyTriton, which is NVIDIA's Triton around a Python function:
python pytriton.py <workload> <port>
"""

import os
import sys
import sysconfig
from pathlib import Path

# this folder's files have the names of the packages
sys.path[0] = str(Path(__file__).parent.parent)

import numpy as np  # noqa: E402
from pytriton.decorators import batch  # noqa: E402
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor  # noqa: E402
from pytriton.triton import Triton, TritonConfig  # noqa: E402

from peers.common import BATCH, WAIT_MS, Model, read_base64  # noqa: E402

# input's, output's
SHAPES = {
    "half_plus_two": ((1,), (1,)),
    "mlp784": ((784,), (10,)),
    "mobilenet_v2": ((224, 224, 3), (1000,)),
}
FINDS = {"boxes": (100, 4), "scores": (100,), "classes": (100,)}


def main(workload, port):
    model = Model(workload)

    @batch
    def predict(rows):
        return {"predictions": model.predict(rows)}

    @batch
    def detect(pictures):
        return model.detect_arrays([read_base64(text) for text in pictures[:, 0]])

    if workload == "ssd320":
        function, inputs = detect, [Tensor(name="pictures", dtype=bytes, shape=(1,))]
        outputs = [
            Tensor(name=name, dtype=np.float32, shape=shape) for name, shape in FINDS.items()
        ]
    else:
        function, inputs = (
            predict,
            [Tensor(name="rows", dtype=np.float32, shape=SHAPES[workload][0])],
        )
        outputs = [Tensor(name="predictions", dtype=np.float32, shape=SHAPES[workload][1])]
    batcher = DynamicBatcher(max_queue_delay_microseconds=WAIT_MS * 1000)
    # here batches are counted in rows
    rows = BATCH[workload] * (3 if workload == "half_plus_two" else 1)
    config = ModelConfig(max_batch_size=rows, batcher=batcher)
    server = TritonConfig(
        http_address="127.0.0.1", http_port=int(port), allow_grpc=False, allow_metrics=False
    )
    # Triton starts a libpython: this Python's, not the system's
    os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")
    with Triton(config=server) as triton:
        triton.bind(
            model_name=workload, infer_func=function, inputs=inputs, outputs=outputs, config=config
        )
        triton.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
