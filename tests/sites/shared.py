"""A site that Flask-CORS opens to the pages of other sites."""

import flask
from flask_cors import CORS

import serving


def create_app(source):
    site = flask.Flask("shared")
    CORS(site, origins=["https://page.example", "null", "capacitor://localhost"])
    site.register_blueprint(serving.create_blueprint(source), url_prefix="/ml")
    return site
