"""Ray Serve: python ray.py <workload> <port>"""

import os
import sys
from pathlib import Path

# Not this folder, whose files have the names of the packages; for Ray's workers, too
os.environ["PYTHONPATH"] = sys.path[0] = str(Path(__file__).parent.parent)
os.environ["RAY_process_group_cleanup_enabled"] = "0"  # noqa: SIM112

import ray  # noqa: E402
from ray import serve  # noqa: E402

from peers.common import BATCH, WAIT_MS, Model, read_base64  # noqa: E402

workload = sys.argv[1]
batched = serve.batch(max_batch_size=BATCH[workload], batch_wait_timeout_s=WAIT_MS / 1e3)


@serve.deployment(max_ongoing_requests=100)  # the default, 5, is less than a batch
class Rows:
    def __init__(self):
        self.model = Model(workload)

    @batched
    async def predict(self, batches):
        return [output.tolist() for output in self.model.predict_each(batches)]

    async def __call__(self, request):
        body = await request.json()
        return {"predictions": await self.predict(body["instances"])}


@serve.deployment(max_ongoing_requests=100)
class Pictures:
    def __init__(self):
        self.model = Model(workload)

    @batched
    async def detect(self, pictures):
        return self.model.detect(pictures)

    async def __call__(self, request):
        body = await request.json()
        return {"predictions": await self.detect(read_base64(body["data"]))}


if __name__ == "__main__":
    ray.init(address="local", include_dashboard=False)  # never a cluster that is there already
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(
        (Pictures if workload == "ssd320" else Rows).bind(), route_prefix="/predict", blocking=True
    )
