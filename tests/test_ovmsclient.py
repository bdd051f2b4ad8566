"""OpenVINO Model Server's own Python client (PyPI ovmsclient) against a real socket."""

import numpy as np
import ovmsclient
import pytest
from conftest import ROOT, listening

import serving


@pytest.fixture(scope="module")
def client():
    server = serving.ModelServer(ROOT / "config.json", poll_seconds=0)
    assert server.wait(60)
    with listening(server) as address:
        yield ovmsclient.make_http_client(address.removeprefix("http://"))


def test_predict(client):
    assert client.predict(
        {"x": np.array([[1.0], [5.0]], np.float32)}, "half_plus_two"
    ).tolist() == [[2.5], [4.5]]
    assert client.predict({"images": np.zeros((2, 8, 8), np.float32)}, "digits", 1).shape == (2, 10)


def test_status(client):
    assert client.get_model_status("digits") == {
        1: {"state": "AVAILABLE", "error_code": 0, "error_message": "OK"}
    } or (client.get_model_status("digits")[1]["state"] == "AVAILABLE")


def test_metadata(client):
    metadata = client.get_model_metadata("digits")
    assert metadata["model_version"] == 1
    assert metadata["inputs"] == {"images": {"shape": [-1, 8, 8], "dtype": "DT_FLOAT"}}
    assert metadata["outputs"] == {"probabilities": {"shape": [-1, 10], "dtype": "DT_FLOAT"}}


def test_errors_are_the_clients_own(client):
    with pytest.raises(ovmsclient.tfs_compat.base.errors.ModelNotFoundError):
        client.predict({"x": [1.0]}, "nope")
    with pytest.raises(ovmsclient.tfs_compat.base.errors.InvalidInputError):
        client.predict({"q": [1.0]}, "half_plus_two")
