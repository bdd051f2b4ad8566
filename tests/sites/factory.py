"""A site made by a factory, as `flask --app factory run --debug` starts it; it writes down what is loaded."""

import os
from pathlib import Path

import flask

import serving


def note(text):
    if "NOTES" in os.environ:
        with open(os.environ["NOTES"], "a") as notes:
            notes.write(f"{os.getpid()} {os.environ.get('WERKZEUG_RUN_MAIN', 'parent')} {text}\n")


class Constant(serving.Servable):
    """Answers y = 7."""

    def __init__(self):
        spec = serving.TensorSpec("x", "x:0", "DT_FLOAT", (None,))
        signature = serving.Signature({"x": spec}, {"y": spec})
        super().__init__(
            {"serving_default": signature}, lambda name, inputs: {"y": 0 * inputs["x"] + 7}
        )


def load(folder, model):
    note("loads")
    return Constant()


def create_app(config=None):
    note("made")
    site = flask.Flask("factory")
    server = serving.ModelServer(
        config or {"model_config_list": [{"config": {"name": "m", "base_path": "m"}}]},
        load=load,
        list_versions=lambda path: {1: Path("1")},
    )
    site.register_blueprint(serving.create_blueprint(server), url_prefix="/ml")

    @site.cli.command("hello")
    def hello():
        print("hello")

    return site
