"""The shop example: a site with a login, whose customers alone may call the model mounted in it."""

import importlib
import re
import sys
import threading

import numpy as np
import pytest
import requests
from conftest import ROOT, assert_error
from werkzeug.serving import make_server

import serving

EXAMPLE = ROOT / "examples" / "shop"
URL = "/ml/v1/models/articles:predict"
TOKEN = re.compile(r'name="csrf_token" value="([^"]+)"')
FIRST = {"name": "ann", "password": "tea for two"}


@pytest.fixture(scope="module")
def shop():
    """The module of the example; its neighbours are imported by plain names, as in its folder."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE)
        yield importlib.import_module("shop")
    for name in ("shop", "articles"):
        assert name not in before
        del sys.modules[name]


@pytest.fixture(scope="module")
def site(shop):
    site = shop.create_app()
    yield site
    for server in site.extensions["serving"].values():
        server.stop()


@pytest.fixture(scope="module")
def recommend():
    """TensorFlow's own answer to baskets [N, 16]."""
    import tensorflow as tf

    model = tf.saved_model.load(str(EXAMPLE / "models/articles/1"))
    signature = model.signatures["serving_default"]

    def answer(baskets):
        (scores,) = signature(basket=tf.constant(baskets, tf.float32)).values()
        return scores.numpy()

    return answer


def token(page):
    return TOKEN.search(page)[1]


def log_in(client):
    page = client.get("/login").text
    answer = client.post("/login", data={**FIRST, "csrf_token": token(page)})
    assert answer.status_code == 303
    return {"X-CSRFToken": token(client.get("/").text)}


def baskets(*articles):
    return np.eye(16)[list(articles)].sum(axis=0, keepdims=True)


def test_who_is_not_logged_in_is_answered_401(site):
    client = site.test_client()
    headers = {"X-CSRFToken": token(client.get("/login").text)}
    body = {"instances": baskets(0).tolist()}
    answer = client.post(URL, json=body, headers=headers)
    assert_error(answer, 401, "This site has refused the request; you may have to log in")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="serving"'  # RFC 6750, 3
    assert client.get("/ml/v1/models/articles").status_code == 401
    wrong = {"name": "ann", "password": "", "csrf_token": headers["X-CSRFToken"]}
    assert client.post("/login", data=wrong).status_code == 401
    assert client.post("/login", data={**wrong, "name": "bob"}).status_code == 401
    assert client.post(URL, json=body, headers=headers).status_code == 401


def test_customers_are_answered_as_tensorflow_answers(site, recommend):
    client = site.test_client()
    headers = log_in(client)
    asked = np.concatenate([baskets(), baskets(0), baskets(0, 4, 5)])
    answer = client.post(URL, json={"instances": asked.tolist()}, headers=headers)
    np.testing.assert_allclose(answer.json["predictions"], recommend(asked), atol=1e-6)


def test_customers_may_call_models_and_nothing_else_of_the_server(site):
    client = site.test_client()
    headers = log_in(client)
    assert client.get("/ml/v1/models/articles").status_code == 401
    assert client.get("/ml/stats").status_code == 401
    assert client.post("/ml/v1/config/reload", headers=headers).status_code == 401
    assert client.get("/ml/livez").status_code == 200


def test_a_call_without_the_pages_token_is_refused(site):
    client = site.test_client()
    log_in(client)
    for headers in ({}, {"X-CSRFToken": "made-up"}):
        answer = client.post(URL, json={"instances": baskets(0).tolist()}, headers=headers)
        assert answer.status_code == 400 and b"CSRF" in answer.data
    assert client.post("/basket/0").status_code == 400


def test_the_page_recommends_what_the_model_says(site, shop, recommend):
    client = site.test_client()
    assert "For you" not in client.get("/").text, "nobody is logged in"
    headers = log_in(client)
    for article in (4, 5):
        assert client.post(f"/basket/{article}", headers=headers).status_code == 303
    found = re.search(r"For you.*?</ul>", client.get("/").text, re.DOTALL)[0]
    best = np.argsort(-recommend(baskets(4, 5))[0])[:3]
    assert re.findall(r"<b>(.*?)</b>", found) == [shop.ARTICLES[article][0] for article in best]
    assert client.post("/basket/16", headers=headers).status_code == 404


def test_a_shop_whose_model_fails_still_sells(shop, tmp_path, caplog):
    source = {
        "model_config_list": [{"config": {"name": "articles", "base_path": str(tmp_path)}}],
        "auth": {"protect": "all"},
    }
    site = shop.create_app(serving.ModelServer(source, poll_seconds=0))
    client = site.test_client()
    log_in(client)
    page = client.get("/")
    assert page.status_code == 200 and "Tent" in page.text and "For you" not in page.text
    assert "no recommendations" in caplog.text
    (server,) = site.extensions["serving"].values()
    server.stop()


def test_the_shops_own_pages_are_the_shops(site):
    client = site.test_client()
    assert client.get("/").mimetype == "text/html"
    assert client.get("/v1/models").mimetype == "text/html", "Flask's own 404"
    assert client.get("/nowhere").status_code == client.get("/v1/models").status_code == 404
    assert client.get("/login").headers.get("X-Request-Id") is None
    answer = client.post("/basket/0", headers={"X-CSRFToken": token(client.get("/login").text)})
    assert answer.status_code == 302 and answer.location.startswith("/login")


@pytest.fixture
def address(site):
    """Where the shop listens."""
    http = make_server("127.0.0.1", 0, site, threaded=True)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()
    http.server_close()


def test_the_shop_answers_over_a_real_socket(address, recommend):
    with requests.Session() as session:
        login = session.get(f"{address}/login").text
        asked = baskets(8, 9)
        body = {"instances": asked.tolist()}
        early = session.post(address + URL, json=body, headers={"X-CSRFToken": token(login)})
        session.post(f"{address}/login", {**FIRST, "csrf_token": token(login)})
        assert session.post(address + URL, json=body).status_code == 400
        headers = {"X-CSRFToken": token(session.get(address).text)}
        answer = session.post(address + URL, json=body, headers=headers)
    assert early.status_code == 401
    np.testing.assert_allclose(answer.json()["predictions"], recommend(asked), atol=1e-6)


def test_the_example_is_short_and_its_model_small():
    assert len((EXAMPLE / "shop.py").read_text().splitlines()) <= 120
    files = [path for path in (EXAMPLE / "models").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 100_000
