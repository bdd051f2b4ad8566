"""What the peers share: the model as a function of arrays, batches joined and split,
and detections as JSON.
"""

import base64

import numpy as np
import workloads

# most requests at once, where a framework batches
BATCH = {"half_plus_two": 16, "mlp784": 16, "mobilenet_v2": 4, "ssd320": 8}
WAIT_MS = 2  # for a batch to fill


class Model:
    """The signature serving_default of a workload: one array in, arrays by name out."""

    def __init__(self, workload):
        import tensorflow as tf

        folder = next(
            folder for folder in workloads.base_path(workload).iterdir() if folder.name.isdigit()
        )
        self.tf, self.loaded = tf, tf.saved_model.load(str(folder))
        self.signature = self.loaded.signatures["serving_default"]
        ((self.name, spec),) = self.signature.structured_input_signature[1].items()
        self.dtype = spec.dtype.as_numpy_dtype

    def run(self, batch):
        outputs = self.signature(**{self.name: self.tf.constant(batch, self.dtype)})
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    def predict(self, batch):
        """The only output."""
        (output,) = self.run(batch).values()
        return output

    def predict_each(self, batches):
        """The outputs of several requests, each a list of rows, run as one batch."""
        ends = np.cumsum([len(batch) for batch in batches])[:-1]
        return np.split(self.predict([row for batch in batches for row in batch]), ends)

    def detect_arrays(self, pictures):
        """The finds in each of the pictures: boxes [n, 100, 4], scores and classes [n, 100]."""
        outputs = self.run(np.stack(pictures))
        return {name: outputs["detection_" + name] for name in ("boxes", "scores", "classes")}

    def detect(self, pictures):
        """The same as lists ready for JSON."""
        rows = (array.tolist() for array in self.detect_arrays(pictures).values())
        return [
            [
                {"bound": box, "class_id": int(class_), "confidence": score}
                for box, score, class_ in zip(*found)
            ]
            for found in zip(*rows)
        ]


def read_base64(text):
    """A picture from the base64 of its JPEG."""
    return workloads.read_jpeg(base64.b64decode(text))
