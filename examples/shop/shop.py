"""A shop with a login, as it was before, and a model that recommends articles in it.

    flask --app shop run                                         # while it is written
    SHOP_SECRET=... gunicorn --threads 16 "shop:create_app(eager=True)"

The page asks the model in this process (`server.predict`); scripts in the browser ask it below /ml,
where only who is logged in may call a model, and only with the page's CSRF token.
"""

import logging
import os
import secrets
from pathlib import Path

import flask
import numpy as np
from articles import ARTICLES
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user
from flask_login import logout_user as forget_user
from flask_wtf.csrf import CSRFProtect
from werkzeug.security import check_password_hash, generate_password_hash

import serving

CONFIG = Path(__file__).parent / "config.json"
SHOWN = 3  # recommendations
# A shop has a table of these.
CUSTOMERS = {"ann": generate_password_hash("tea for two")}
NOBODY = generate_password_hash(secrets.token_hex())  # an unknown name takes as long as a known one

logger = logging.getLogger("shop")


class Customer(UserMixin):
    def __init__(self, name: str) -> None:
        self.id = name


def may_call(request: flask.Request) -> str | None:
    """Who calls, for the server's log: customers may ask models, and nothing else of the server."""
    return current_user.get_id() if request.path.endswith(":predict") else None


def recommend(server: serving.ModelServer, basket: list[int]) -> list[int]:
    """The articles that are most likely bought next, best first; none where the model fails, for a
    shop without recommendations still sells.
    """
    row = np.zeros(len(ARTICLES), np.float32)
    row[basket] = 1
    try:
        (scores,) = server.predict("articles", {"instances": row[np.newaxis]})["predictions"]
    except serving.ServingError as error:
        logger.warning("no recommendations: %s", error)
        return []
    best = [int(article) for article in np.argsort(-scores)]
    return [article for article in best if article not in basket][:SHOWN]


def create_app(source: serving.Source = CONFIG, eager: bool = False) -> flask.Flask:
    """The shop; with `eager`, the model is loaded before the first customer comes."""
    shop = flask.Flask(__name__)
    # Without a secret of its own, who is logged in is forgotten when the shop starts again.
    shop.secret_key = os.environ.get("SHOP_SECRET") or secrets.token_hex()
    shop.config["SESSION_COOKIE_SAMESITE"] = "Lax"
    CSRFProtect(shop)  # also of /ml, as who may call there is known by a cookie
    logins = LoginManager(shop)
    logins.login_view = "login"
    logins.user_loader(lambda name: Customer(name) if name in CUSTOMERS else None)
    blueprint = serving.create_blueprint(source, authorize=may_call, eager=eager)
    shop.register_blueprint(blueprint, url_prefix="/ml")
    add_pages(shop, shop.extensions["serving"][blueprint.name])
    return shop


def add_pages(shop: flask.Flask, server: serving.ModelServer) -> None:
    @shop.get("/")
    def front():
        basket = flask.session.get("basket", [])
        found = recommend(server, basket) if current_user.is_authenticated else []
        return flask.render_template("shop.html", articles=ARTICLES, basket=basket, found=found)

    @shop.post("/basket/<int:article>")
    @login_required
    def put(article: int):
        if article >= len(ARTICLES):
            flask.abort(404)
        basket = flask.session.get("basket", [])
        flask.session["basket"] = sorted({*basket, article})
        return flask.redirect(flask.url_for("front"), 303)

    @shop.route("/login", methods=["GET", "POST"])
    def login():
        if flask.request.method == "GET":
            return flask.render_template("login.html")
        name = flask.request.form.get("name", "")
        known = CUSTOMERS.get(name, NOBODY)
        if not check_password_hash(known, flask.request.form.get("password", "")):
            return flask.render_template("login.html", wrong=True), 401
        login_user(Customer(name))
        return flask.redirect(flask.url_for("front"), 303)

    @shop.post("/logout")
    def logout():
        forget_user()
        flask.session.clear()
        return flask.redirect(flask.url_for("front"), 303)
