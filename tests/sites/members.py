"""A site with Flask-Login: who is logged in may use the pictures and handlers, without a key."""

import flask
from flask_login import LoginManager, UserMixin, current_user, login_user

import serving


class Member(UserMixin):
    id = "ann"


def create_app(source):
    site = flask.Flask("members")
    site.secret_key = "of a test"
    logins = LoginManager(site)
    logins.user_loader(lambda name: Member() if name == "ann" else None)
    site.register_blueprint(
        serving.create_blueprint(
            source,
            authorize=lambda request: current_user.is_authenticated and current_user.get_id(),
        ),
        url_prefix="/ml",
    )

    @site.post("/login")
    def login():
        login_user(Member())
        return "welcome"

    return site
