"""Every example of TensorFlow Serving's REST guide (g3doc/api_rest.md), against the demo models."""

import json

import numpy as np
import pytest
from conftest import ROOT, Rest, assert_error, fake_server, signature, spec

import serving

pytestmark = pytest.mark.usefixtures("extensions")


def test_status(rest):
    response = rest.get("/v1/models/half_plus_three")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert json.loads(response.data) == {
        "model_version_status": [
            {
                "version": "123",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }


def test_predict(rest):
    response = rest.post("/v1/models/half_plus_three:predict", '{"instances": [1.0,2.0,5.0]}')
    assert response.status_code == 200
    assert json.loads(response.data) == {"predictions": [3.5, 4.0, 5.5]}


def test_regress(rest):
    response = rest.post(
        "/v1/models/half_plus_three:regress",
        '{"signature_name": "tensorflow/serving/regress", "examples": [{"x": 1.0}, {"x": 2.0}]}',
    )
    assert response.status_code == 200
    assert json.loads(response.data)["results"] == [3.5, 4.0]
    assert json.loads(response.data)["result"] == [3.5, 4.0]


def test_unknown_model(rest):
    assert_error(
        rest.post("/v1/models/half:predict", '{"instances": [1.0,5.0]}'),
        404,
        "Servable not found for request: Latest(half)",
    )


def test_classify_with_scores_only_has_empty_labels(rest):
    response = rest.post(
        "/v1/models/half_plus_two:classify",
        {"signature_name": "classify", "examples": [{"x": 1.0}, {"x": [2.0]}]},
    )
    assert json.loads(response.data)["results"] == [[["", 2.5]], [["", 3.0]]]


def test_context_is_merged_into_each_example(rest):
    body = {"signature_name": "regress", "context": {"x": 4.0}, "examples": [{}, {}]}
    answer = json.loads(rest.post("/v1/models/half_plus_two:regress", body).data)
    assert answer["results"] == [4.0, 4.0]


def test_a_feature_of_an_example_goes_before_that_of_the_context(rest):
    """As TensorFlow Serving does, whose guide says that it "MUST NOT appear in examples"."""
    body = {"signature_name": "regress", "context": {"x": 4.0}, "examples": [{}, {"x": 6.0}]}
    answer = rest.post("/v1/models/half_plus_two:regress", body)
    assert answer.json["results"] == [4.0, 5.0]


@pytest.mark.parametrize(
    "form", [{"instances": [{"x": [1.0]}, {"x": [3.0]}]}, {"instances": [[1.0], [3.0]]}]
)
def test_rows_named_or_plain(rest, form):
    assert json.loads(rest.post("/v1/models/half_plus_two:predict", form).data) == {
        "predictions": [[2.5], [3.5]]
    }


@pytest.mark.parametrize("form", [{"inputs": {"x": [[1.0], [3.0]]}}, {"inputs": [[1.0], [3.0]]}])
def test_columns_named_or_plain(rest, form):
    assert json.loads(rest.post("/v1/models/half_plus_two:predict", form).data) == {
        "outputs": [[2.5], [3.5]]
    }


def guide_model():
    """A servable with the guide's inputs tag, signal and sensor, that echoes what it gets."""
    names = [
        ("tag", "DT_STRING", (None,)),
        ("signal", "DT_INT64", (None, 5)),
        ("sensor", "DT_FLOAT", (None, 2, 2)),
    ]
    specs = [spec(*name) for name in names]
    return serving.Servable(
        {"serving_default": signature(specs, specs)}, lambda name, inputs: inputs
    )


GUIDE_ROWS = [
    {"tag": "foo", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},
    {"tag": "bar", "signal": [3, 4, 1, 2, 5], "sensor": [[4, 5], [6, 8]]},
]
GUIDE_COLUMNS = {
    "tag": ["foo", "bar"],
    "signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]],
    "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]],
}


def test_several_named_inputs_by_rows_and_by_columns_are_the_same_tensors(how):
    client = Rest(fake_server({"m": guide_model()}), how)
    assert json.loads(client.post("/v1/models/m:predict", {"instances": GUIDE_ROWS}).data) == {
        "predictions": GUIDE_ROWS
    }
    assert json.loads(client.post("/v1/models/m:predict", {"inputs": GUIDE_COLUMNS}).data) == {
        "outputs": GUIDE_COLUMNS
    }


def test_plain_strings_and_nested_lists():
    echo = serving.Servable(
        {
            "serving_default": signature([spec("s", "DT_STRING")], [spec("s", "DT_STRING")]),
            "nested": signature([spec("v")], [spec("v")]),
        },
        lambda name, inputs: inputs,
    )
    client = Rest(fake_server({"m": echo}))
    assert json.loads(
        client.post("/v1/models/m:predict", {"instances": ["foo", "bar", "baz"]}).data
    ) == {"predictions": ["foo", "bar", "baz"]}
    nested = {"instances": [[[1, 2]], [[3, 4]]], "signature_name": "nested"}
    assert json.loads(client.post("/v1/models/m:predict", nested).data) == {
        "predictions": [[[1.0, 2.0]], [[3.0, 4.0]]]
    }


def test_binary_values_come_and_go_as_base64():
    specs = [spec("image_bytes", "DT_STRING"), spec("caption", "DT_STRING")]
    echo = serving.Servable(
        {"serving_default": signature(specs, specs)}, lambda name, inputs: inputs
    )
    client = Rest(fake_server({"m": echo}))
    rows = [
        {"image_bytes": {"b64": "aW1hZ2UgYnl0ZXM="}, "caption": "seaside"},
        {"image_bytes": {"b64": "YXdlc29tZSBpbWFnZSBieXRlcw=="}, "caption": "mountains"},
    ]
    assert json.loads(client.post("/v1/models/m:predict", {"instances": rows}).data) == {
        "predictions": rows
    }


def test_nan_and_infinity_come_and_go_as_tokens():
    echo = serving.Servable(
        {"serving_default": signature([spec("v")], [spec("v")])}, lambda name, inputs: inputs
    )
    response = Rest(fake_server({"m": echo})).post(
        "/v1/models/m:predict", '{"instances": [1.0, -3.14, NaN, Infinity, -Infinity]}'
    )
    assert response.data == b'{"predictions":[1.0,-3.14,NaN,Infinity,-Infinity]}'


def test_metadata_has_both_casings_in_one_answer(rest):
    body = json.loads(rest.get("/v1/models/digits/metadata").data)
    assert body["model_spec"] == {"name": "digits", "signature_name": "", "version": "1"}
    snake = body["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert snake["inputs"]["images"] == {
        "dtype": "DT_FLOAT",
        "name": "serving_default_images:0",
        "tensor_shape": {
            "dim": [
                {"size": "-1", "name": ""},
                {"size": "8", "name": ""},
                {"size": "8", "name": ""},
            ],
            "unknown_rank": False,
        },
    }
    assert snake["method_name"] == "tensorflow/serving/predict" and snake["defaults"] == {}
    assert body["modelSpec"]["version"] == "1"
    camel = body["metadata"]["signature_def"]["signatureDef"]["serving_default"]
    assert (
        camel["inputs"]["images"]["tensorShape"]["dim"][1]["size"] == "8"
        and camel["methodName"] == "tensorflow/serving/predict"
    )


def test_metadata_tells_the_init_op_as_stored(rest):
    body = json.loads(rest.get("/v1/models/digits/metadata").data)
    init = body["metadata"]["signature_def"]["signature_def"]["__saved_model_init_op"]
    assert init["outputs"]["__saved_model_init_op"] == {
        "dtype": "DT_INVALID",
        "name": "NoOp",
        "tensor_shape": {"dim": [], "unknown_rank": True},
    }


def held_out():
    arrays = np.load(ROOT / "models" / "digits_held_out.npz")
    return arrays["images"], arrays["labels"]


def test_digits_from_held_out_images(rest):
    images, labels = held_out()
    answer = json.loads(
        rest.post("/v1/models/digits/labels/stable:predict", {"instances": images.tolist()}).data
    )
    right = np.mean(np.argmax(answer["predictions"], axis=1) == labels)
    assert right >= 0.98


def test_digits_equal_tensorflow_called_directly(demo, tf):
    images = held_out()[0].astype(np.float32)
    direct = tf.saved_model.load(str(ROOT / "models/digits/1")).signatures["serving_default"](
        images=tf.constant(images)
    )
    ours = demo.predict("digits", {"instances": images})["predictions"]
    np.testing.assert_allclose(ours, direct["probabilities"].numpy(), rtol=1e-5, atol=1e-7)


def test_digits_classified_from_examples(rest):
    images, labels = held_out()
    body = {
        "signature_name": "classify",
        "examples": [{"image": image.reshape(-1).astype(float).tolist()} for image in images[:20]],
    }
    results = json.loads(rest.post("/v1/models/digits:classify", body).data)["results"]
    best = [max(pairs, key=lambda pair: pair[1])[0] for pairs in results]
    assert np.mean([int(name) == label for name, label in zip(best, labels)]) >= 0.9
