"""Somebody's Flask site, a page of which shows the server's answers: in a frame, and by a script.

python -m flask --app examples/widget/shop run --port 8501
"""

from pathlib import Path

import flask

import serving

FOLDER = Path(__file__).parent

app = flask.Flask(__name__, static_folder=FOLDER / "static", static_url_path="")
blueprint = serving.create_blueprint(
    FOLDER / "config.json",
    eager=True,  # loads now, not with the first request
    authorize=lambda request: True,  # everybody; a site with a login asks that
)
app.register_blueprint(blueprint, url_prefix="/ml")


@app.get("/")
def page():
    return app.send_static_file("page.html")
