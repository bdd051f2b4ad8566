"""A Flask site with one page, which asks the model of this folder: what is drawn, which digit is it?

python -m flask --app examples/digits/draw run --port 8501
"""

from pathlib import Path

import flask

import serving

FOLDER = Path(__file__).parent

app = flask.Flask(__name__)
app.register_blueprint(serving.create_blueprint(FOLDER / "config.json"), url_prefix="/ml")


@app.get("/")
def page():
    return flask.send_file(FOLDER / "draw.html")
