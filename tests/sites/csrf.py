"""A site of forms that Flask-WTF protects; clients with keys are let through to the server's URLs."""

import flask
from flask_wtf.csrf import CSRFProtect

import serving


def create_app(source, exempt=True):
    site = flask.Flask("csrf")
    site.secret_key = "of a test"
    csrf = CSRFProtect(site)
    blueprint = serving.create_blueprint(source)
    if exempt:
        csrf.exempt(blueprint)
    site.register_blueprint(blueprint, url_prefix="/ml")

    @site.post("/form")
    def form():
        return "taken"

    return site
