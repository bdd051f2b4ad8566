"""A site where Flask-Limiter counts calls: two a minute of the server's URLs, by address."""

import flask
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address

import serving


def create_app(source, default=None):
    site = flask.Flask("limited")
    limits = [default] if default else []
    limiter = Limiter(get_remote_address, app=site, default_limits=limits, storage_uri="memory://")
    blueprint = serving.create_blueprint(source)
    if not default:
        limiter.limit("2 per minute")(blueprint)
    site.register_blueprint(blueprint, url_prefix="/ml")

    @site.get("/")
    def home():
        return "home"

    return site
