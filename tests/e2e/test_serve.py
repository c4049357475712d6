"""`lightning serve` as its users meet it: answers, problem documents, probes, metrics, and a clean end."""

from __future__ import annotations

import base64
import io
import time
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.imaging.masks import decode_rle
from serving.predictor import Predictor
from tests.e2e.services import Running, picture

RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_a_picture_as_the_body_gets_every_heads_answer(service, bundle):
    data = picture(40, 80, BLUE)
    answer = service.client.post("/predict", content=data)
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["images"]
    assert image["size"] == {"width": 80, "height": 40}
    heads = image["heads"]
    assert heads["colour"]["labels"] == ["blue"]
    # As the predictor alone answers it.
    (alone,) = Predictor.load(bundle, "onnxruntime", threads=1).predict([data])
    for entry, wanted in zip(heads["colour"]["probabilities"], alone.heads["colour"].probabilities, strict=True):
        assert entry["probability"] == pytest.approx(float(wanted), abs=1e-4)
    (box,) = heads["things"]["boxes"]
    assert box == {"class": "thing", "class_id": 0, "score": 0.9, "box": [20.0, 20.0, 60.0, 40.0]}
    (region,) = heads["ground"]["regions"]
    assert region["class"] == "cold"
    assert decode_rle(region["rle"], (40, 80)).all()
    assert answer.json()["model"]["version"] == answer.headers["x-model-version"] == "1"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_one_bad_picture_among_many_gets_its_own_error(service):
    files = [("images", ("a.png", picture())), ("images", ("b.txt", b"no picture")), ("images", ("c.png", picture()))]
    answer = service.client.post("/predict", files=files)
    assert answer.status_code == 200
    first, second, third = answer.json()["images"]
    assert first["heads"]["colour"]["labels"] == third["heads"]["colour"]["labels"] == ["red"]
    assert second["name"] == "b.txt"
    assert second["error"]["status"] == 415
    assert "b.txt" in second["error"]["detail"]


def test_the_first_pictures_are_computed_while_the_last_are_still_sent(service):
    files = [("images", (f"{colour}.png", picture(colour=colour))) for colour in (RED, BLUE, RED)]
    whole = service.client.build_request("POST", "/predict", files=files)
    body, ahead = whole.read(), []

    def computed():
        return service.metric("trifocal_batch_size_sum")

    def slowly():
        before, half = computed(), body.rindex(b"Content-Disposition")
        yield body[:half]
        deadline = time.monotonic() + 20
        while computed() < before + 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        ahead.append(computed() - before)
        yield body[half:]

    headers = {"content-type": whole.headers["content-type"]}
    answer = service.client.post("/predict", content=slowly(), headers=headers)
    assert ahead == [2]
    at_once = service.client.send(whole)
    assert answer.status_code == at_once.status_code == 200
    plain = [[{**image, "milliseconds": None} for image in one.json()["images"]] for one in (answer, at_once)]
    assert plain[0] == plain[1]
    assert len(plain[0]) == 3


def test_a_form_that_is_refused_in_its_middle_is_answered_though_the_rest_is_still_sent(service):
    field = b'--edge\r\nContent-Disposition: form-data; name="treshold"\r\n\r\n1\r\n'
    file = b'--edge\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n%s\r\n'
    body = field + file % picture() + file % bytes(8_000_000) + b"--edge--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    for _ in range(3):
        # This client asks for the connection's end, and reads nothing before all is sent.
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(service.url + "/predict", body, headers), timeout=20)
        assert refused.value.code == 400
        assert b"treshold" in refused.value.read()
        answer = service.client.post("/predict", content=body, headers=headers)
        assert answer.status_code == 400


def test_a_bad_picture_alone_is_a_problem_document(service):
    for content, status in ((b"no picture", 415), (b"P6 1 1 255\n\0\0\0", 415), (picture()[:60], 422), (b"", 422)):
        answer = service.client.post("/predict", content=content, headers={"X-Request-ID": "abc-1"})
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        document = answer.json()
        assert document["status"] == status
        assert document["remedy"]
        assert document["instance"].endswith("abc-1")
        assert answer.headers["x-request-id"] == "abc-1"
        assert "Traceback" not in answer.text


def test_options_choose_heads_threshold_and_the_masks_form(service):
    data = picture(40, 80, BLUE)

    def heads(**options):
        answer = service.client.post("/predict", content=data, params=options)
        assert answer.status_code == 200, answer.text
        return answer.json()["images"][0]["heads"]

    assert list(heads(heads="colour,things")) == ["colour", "things"]
    assert len(heads(threshold="0.001")["things"]["boxes"]) == 2
    assert heads(threshold="0.95")["things"]["boxes"] == []
    assert "ground" not in heads(masks="none")
    png = np.frombuffer(base64.b64decode(heads(masks="png")["ground"]["png"]), np.uint8)
    assert (cv2.imdecode(png, cv2.IMREAD_UNCHANGED) == 1).all()
    (polygons,) = heads(masks="polygons")["ground"]["regions"]
    outer = np.reshape(polygons["polygons"][0]["outer"], (-1, 2))
    assert sorted(map(tuple, outer)) == [(0, 0), (0, 39), (79, 0), (79, 39)]
    fields = service.client.post("/predict", files={"image": ("a.png", data)}, data={"heads": "colour"})
    assert list(fields.json()["images"][0]["heads"]) == ["colour"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"head": "colour"}, "did you mean 'heads'"),
        ({"heads": "color"}, "did you mean 'colour'"),
        ({"masks": "gif"}, "rle, png, polygons, none"),
        ({"threshold": "2"}, "from 0 to 1"),
        ({"threshold": "nan"}, "from 0 to 1"),
    ],
)
def test_wrong_options_are_named_with_what_is_right(service, options, told):
    answer = service.client.post("/predict", content=picture(), params=options)
    assert answer.status_code == 400
    assert told in answer.json()["detail"]


@pytest.mark.parametrize(("kind", "form"), [("image/png", "PNG"), ("image/jpeg", "JPEG")])
def test_the_answer_comes_as_an_annotated_picture(service, kind, form):
    data = picture(300, 400, BLUE)
    answer = service.client.post("/predict", content=data, headers={"Accept": kind})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == kind
    drawn = Image.open(io.BytesIO(answer.content))
    assert drawn.format == form
    assert drawn.size == (400, 300)
    assert np.abs(np.asarray(drawn.convert("RGB")).astype(int) - BLUE).max() > 100
    two = [("images", ("a.png", data)), ("images", ("b.png", data))]
    assert service.client.post("/predict", files=two, headers={"Accept": kind}).status_code == 406
    for accept in ("text/html", "image/webp, application/json;q=0"):
        assert service.client.post("/predict", content=data, headers={"Accept": accept}).status_code == 406


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("image/png;q=0, application/json", "application/json"),
        ("application/json;q=0.2, image/png", "image/png"),
        ("image/png;q=0.1, image/jpeg;q=0.9", "image/jpeg"),
        ("text/html, image/*;q=0.8, */*;q=0.5", "image/jpeg"),
        ("text/html, */*;q=0.1", "application/json"),
        ("IMAGE/PNG;q=oops", "image/png"),
        ("image/*, image/jpeg;q=0", "image/png"),
        ("*/*, application/json;q=0", "image/jpeg"),
    ],
)
def test_the_form_that_accept_likes_best_is_given(service, accept, kind):
    answer = service.client.post("/predict", content=picture(), headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == kind


def test_accept_may_come_in_several_lines(service):
    lines = [("Accept", "text/html"), ("Accept", "image/png")]
    assert service.client.post("/predict", content=picture(), headers=lines).headers["content-type"] == "image/png"


def test_a_photograph_of_12_megapixels_is_annotated_in_time(service):
    photo = picture(3000, 4000, BLUE, ".jpg")
    for kind in ("image/jpeg", "image/png"):
        answer = service.client.post("/predict", content=photo, headers={"Accept": kind})
        assert answer.status_code == 200, answer.text
        assert Image.open(io.BytesIO(answer.content)).size == (4000, 3000)


def test_a_compressed_body_is_told(service):
    answer = service.client.post("/predict", content=picture(), headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 400
    assert "compressed" in answer.json()["detail"]


def test_probes_model_and_metrics(service):
    assert service.client.get("/healthz").json() == {"status": "alive"}
    assert service.client.get("/readyz").json() == {"status": "ready"}
    model = service.client.get("/model").json()
    assert (model["name"], model["version"]) == ("known", "1")
    assert model["heads"]["things"]["classes"] == ["thing", "other"]
    before = service.metric('trifocal_images_total{outcome="answered"}')
    service.client.post("/predict", files=[("images", ("a.png", picture()))] * 3)
    assert service.metric('trifocal_images_total{outcome="answered"}') == before + 3
    assert service.client.get("/nowhere").status_code == 404
    other = service.client.get("/predict")
    assert other.json()["status"] == 405
    assert other.headers["allow"] == "POST"


def test_sigterm_ends_it_with_0_and_nothing_stays(bundle):
    with Running(bundle, "--drain", "0.2") as running:
        assert running.client.post("/predict", content=picture()).status_code == 200
        assert running.stop() == 0
        assert "Traceback" not in running.text


def test_no_training_package_is_imported_by_the_service():
    import subprocess
    import sys

    from tests.e2e.services import ROOT

    code = (
        "import sys, serving.command, serving.server, serving.workers.engine, serving.workers.decoder;"
        "print([name for name in ('torch', 'lightning', 'mlflow', 'albumentations', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
