"""The handler of this project: the server calls `inference_handler` with the JSON body of each
POST. This module is imported once: load your model here, from MODEL_DIR, the folder `model`.
"""

import os

from hub import hub_handler

MODEL_DIR = os.getenv("MODEL_DIR")

# model = keras.models.load_model(os.path.join(MODEL_DIR, "mine.keras"))


@hub_handler
def inference_handler(inputs, _):
    """The number of words and characters of a text, until your model has more to say."""
    text = str(inputs)
    return {"words": len(text.split()), "characters": len(text)}
