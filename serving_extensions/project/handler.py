"""The handler of this project: the server calls `inference_handler` with the JSON body of each
POST.

This module is imported once, when the server starts: load your model and import helper modules of
this folder here at the top. With `"model_dir": "model"` in config.json, MODEL_DIR is set in the
environment while it is imported.
"""

from serving import BadRequest

# Load your model here, from any framework, for example:
#     model = keras.models.load_model(Path(os.environ["MODEL_DIR"]) / "mine.keras")


def inference_handler(inputs, _):
    """Answer the number of words and characters of a text, until your model has more to say.

    `inputs` is any JSON value; what is returned may be any JSON value, NumPy arrays and tensors
    included, or an image. The second argument is the context of the request. Raises BadRequest when
    `inputs` is not a string: the client gets its text, with status 400.
    """
    if not isinstance(inputs, str):
        raise BadRequest(f"expected a string, got {type(inputs).__name__}")
    return {"words": len(inputs.split()), "characters": len(inputs)}
