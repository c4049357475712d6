"""The Open Inference Protocol, spoken by the public tritonclient as it is."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from serving.predictor import Predictor
from tests.e2e.services import picture

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture(scope="module")
def client(service):
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as found:
        yield found


def pixels(batch):
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (batch, 32, 32, 3), np.uint8)


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("known")
    assert client.is_model_ready("known", "1")
    assert not client.is_model_ready("known", "2")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    found = client.get_model_metadata("known")
    assert found["versions"] == ["1"]
    assert found["inputs"][0] == {"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}
    outputs = {out["name"]: (out["datatype"], out["shape"]) for out in found["outputs"]}
    assert outputs["things.classes"] == ("INT64", [-1, 2])
    assert outputs["ground.probabilities"] == ("FP32", [-1, 2, 32, 32])


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("binary", [True, False])
def test_decoded_tensors_give_the_graphs_own_outputs(client, bundle, batch, binary):
    images = pixels(batch)
    wanted = Predictor.load(bundle, "onnxruntime", threads=1).infer(images)
    given = triton.InferInput("images", list(images.shape), "UINT8")
    given.set_data_from_numpy(images, binary_data=binary)
    asked = [triton.InferRequestedOutput(name, binary_data=binary) for name in wanted]
    found = client.infer("known", [given], outputs=asked, request_id="7")
    assert found.get_response()["id"] == "7"
    for name, value in wanted.items():
        np.testing.assert_allclose(found.as_numpy(name), value, atol=1e-5)
        assert found.as_numpy(name).dtype == value.dtype


def test_without_named_outputs_all_come(client, bundle):
    given = triton.InferInput("images", [1, 32, 32, 3], "UINT8")
    given.set_data_from_numpy(pixels(1))
    names = {out["name"] for out in client.infer("known", [given], model_version="1").get_response()["outputs"]}
    assert "ground.mask" in names
    assert "colour.probabilities" in names


def test_encoded_pictures_give_readable_answers_and_tensors(client):
    data = np.asarray([picture(40, 80, BLUE), picture(30, 30, RED)], np.object_)
    given = triton.InferInput("encoded", [2], "BYTES")
    given.set_data_from_numpy(data)
    answers = [json.loads(text) for text in client.infer("known", [given]).as_numpy("answers")]
    assert [answer["heads"]["colour"]["labels"] for answer in answers] == [["blue"], ["red"]]
    assert answers[0]["size"] == {"width": 80, "height": 40}
    assert answers[0]["heads"]["things"]["boxes"][0]["box"] == [20.0, 20.0, 60.0, 40.0]
    asked = [triton.InferRequestedOutput(name) for name in ("colour.probabilities", "answers")]
    both = client.infer("known", [given], outputs=asked)
    assert both.as_numpy("colour.probabilities").argmax(1).tolist() == [2, 0]
    assert len(both.as_numpy("answers")) == 2


def test_encoded_pictures_as_base64_in_plain_json(service):
    text = base64.b64encode(picture(40, 80, BLUE)).decode()
    request = {"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], "data": [text]}]}
    answer = service.client.post("/v2/models/known/infer", json=request)
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["outputs"]
    assert json.loads(found["data"][0])["heads"]["colour"]["labels"] == ["blue"]


def test_errors_reach_the_client_in_its_own_form(client):
    given = triton.InferInput("encoded", [1], "BYTES")
    given.set_data_from_numpy(np.asarray([b"no picture"], np.object_))
    with pytest.raises(InferenceServerException, match="Not a picture of a known format"):
        client.infer("known", [given])
    with pytest.raises(InferenceServerException, match="here is 'known' version '1'"):
        client.infer("other", [given])
