"""A Flask site with one page: what is drawn on it is sent to the model of this folder.

python -m flask --app examples/digits/draw run --port 8501
"""

from pathlib import Path

import flask

import serving

FOLDER = Path(__file__).parent

app = flask.Flask(__name__)
blueprint = serving.create_blueprint(FOLDER / "config.json", eager=True)  # loads now
app.register_blueprint(blueprint, url_prefix="/ml")


@app.get("/")
def page():
    return flask.send_file(FOLDER / "draw.html")
