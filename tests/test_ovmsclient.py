"""OpenVINO Model Server's own Python client (PyPI ovmsclient) against a real socket."""

import threading

import numpy as np
import ovmsclient
import pytest
from conftest import ROOT

import serving


@pytest.fixture(scope="module")
def client():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server, stop = serving.ModelServer(ROOT / "config.json", poll_seconds=0), threading.Event()
    thread = threading.Thread(target=serving.run, args=(server, "127.0.0.1", port, stop))
    thread.start()
    assert server.wait(60)
    yield ovmsclient.make_http_client(f"127.0.0.1:{port}")
    stop.set()
    thread.join(30)


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
