"""The predictor: bytes in, answers out, on a bundle whose graph is known by heart."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.errors import ConfigError, EngineError, ImageError
from pipeline.imaging.geometry import Letterbox
from pipeline.imaging.letterbox import letterbox_image
from serving.answers import Answer, BoxAnswer, LabelAnswer, MaskAnswer, Options
from serving.predictor import Predictor
from tests.unit.bundles import known_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor.load(known_bundle(tmp_path_factory.mktemp("bundle") / "known"), "onnxruntime", threads=1)


def png(height, width, colour):
    pixels = np.full((height, width, 3), colour, np.uint8)
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def test_a_bad_image_gets_its_error_and_the_others_their_answers(predictor):
    good = png(40, 80, (255, 0, 0))
    first, second, third = predictor.predict([good, b"no image", good])
    assert isinstance(second, ImageError)
    assert isinstance(first, Answer)
    assert first.size == third.size == (40, 80)
    assert first.heads["colour"].chosen == [0]
    assert predictor.predict([]) == []
    (only,) = predictor.predict([b""])
    assert isinstance(only, ImageError)


def test_answers_are_in_pixels_of_the_image_as_sent(predictor):
    (answer,) = predictor.predict([png(40, 80, (0, 0, 255))], Options(threshold=0.5))
    assert isinstance(answer.heads["colour"], LabelAnswer)
    assert answer.heads["colour"].chosen == [2]
    # The known graph answers the box (8, 16) to (24, 32) of its 32 x 32 input; 80 x 40 lies there at scale 0.4, 8 down.
    boxes = answer.heads["things"]
    assert isinstance(boxes, BoxAnswer)
    np.testing.assert_allclose(boxes.boxes, [[20, 20, 60, 40]], atol=1e-3)  # cut at the image's border
    mask = answer.heads["ground"]
    assert isinstance(mask, MaskAnswer)
    assert mask.mask.shape == (40, 80)
    assert (mask.mask == 1).all()  # blue is class 1


def test_options_choose_heads_scores_and_masks(predictor):
    image = png(32, 32, (0, 255, 0))
    (few,) = predictor.predict([image], Options(heads=("colour",)))
    assert list(few.heads) == ["colour"]
    (none,) = predictor.predict([image], Options(threshold=0.99, masks=False))
    assert "ground" not in none.heads
    assert len(none.heads["things"].boxes) == 0
    with pytest.raises(ConfigError, match="did you mean 'colour'"):
        predictor.predict([image], Options(heads=("color",)))


def test_a_batch_answers_as_each_image_alone_and_from_many_threads(predictor):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    images = [png(20 + 7 * i, 50, colours[i % 3]) for i in range(9)]
    together = predictor.predict(images)
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda image: predictor.predict([image])[0], images))
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.heads["colour"].probabilities, other.heads["colour"].probabilities, atol=1e-5)
        np.testing.assert_array_equal(one.heads["ground"].mask, other.heads["ground"].mask)


def test_letterboxing_is_training_evaluations_own(predictor):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (45, 61, 3), np.uint8)
    prepared = predictor.decode(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())
    assert prepared.frame == Letterbox.fit((45, 61), (32, 32))
    np.testing.assert_array_equal(prepared.pixels, letterbox_image(pixels, prepared.frame))


def test_unknown_engines_and_wrong_shapes_are_told(predictor):
    with pytest.raises(EngineError, match="did you mean 'onnxruntime'"):
        Predictor.load(predictor.bundle.path, "onnxruntme")
    with pytest.raises(EngineError, match="no variant 'fp31'"):
        Predictor.load(predictor.bundle.path, "onnxruntime:fp31")
    with pytest.raises(EngineError, match="failed"):
        predictor.infer(np.zeros((1, 16, 32, 3), np.uint8))


def test_serving_imports_no_torch():
    code = "import sys, serving.predictor, serving.engines.onnxruntime; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
