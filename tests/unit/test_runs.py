"""Masks as runs: enlarged without their full size as by enlarging every class, coded as pycocotools does, and back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from torch.nn import functional as F

from pipeline.errors import DataError
from pipeline.imaging.enlarge import likeliest_runs, nearest_runs
from pipeline.imaging.geometry import Letterbox
from pipeline.imaging.runs import MaskRuns

SMALL = (32, 32)


def smooth(classes, seed, sharpness):
    """Class probabilities float32 (C, 32, 32), blurred and more or less certain."""
    rng = np.random.default_rng(seed)
    logits = cv2.GaussianBlur(rng.normal(size=(*SMALL, classes)).astype(np.float32), (0, 0), 3)
    logits = logits.reshape(*SMALL, classes).transpose(2, 0, 1) * sharpness
    powers = np.exp(logits - logits.max(0))
    return np.ascontiguousarray(powers / powers.sum(0)).astype(np.float32)


def enlarged(probabilities, frame):
    """Every class at full size, float32 (C, h, w), by torch."""
    top, left = frame.top, frame.left
    inner = probabilities[:, top : top + frame.inner[0], left : left + frame.inner[1]]
    planes = F.interpolate(torch.from_numpy(inner)[None], size=frame.source, mode="bilinear", align_corners=False)
    return planes[0].numpy()


def likeliest(probabilities, frame):
    """The runs, where the network's own mask is the likeliest class."""
    return likeliest_runs(probabilities, probabilities.argmax(0).astype(np.uint8), frame)


def agrees(runs, planes):
    """Whether each pixel's class is the likeliest, or as likely but for rounding."""
    chosen = np.take_along_axis(planes, runs.mask()[None].astype(np.int64), 0)[0]
    return bool((chosen >= planes.max(0) - 1e-5).all())


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.floats(0.2, 300),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.sampled_from([None, 2, 0]),
)
def test_the_likeliest_class_of_enlarged_probabilities(classes, seed, sharpness, source, digits):
    probabilities, frame = smooth(classes, seed, sharpness), Letterbox.fit(source, SMALL)
    if digits is not None:  # many are equal then
        probabilities = probabilities.round(digits)
    runs = likeliest(probabilities, frame)
    assert runs.lengths.min() >= 1
    assert runs.lengths.sum() == source[0] * source[1]
    assert agrees(runs, enlarged(probabilities, frame))


@pytest.mark.parametrize("source", [(32, 32), (45, 61), (20, 90), (300, 17), (1500, 2000)])
def test_noise_and_large_images_too(source):
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(5), SMALL).transpose(2, 0, 1).astype(np.float32)
    frame = Letterbox.fit(source, SMALL)
    assert agrees(likeliest(probabilities, frame), enlarged(probabilities, frame))


def test_many_changes_are_looked_at_a_few_at_a_time(monkeypatch):
    probabilities, frame = smooth(6, 3, 9.0), Letterbox.fit((400, 300), SMALL)
    whole = likeliest(probabilities, frame)
    monkeypatch.setattr("pipeline.imaging.enlarge._VALUES", 1)  # one change at a time
    np.testing.assert_array_equal(likeliest(probabilities, frame).mask(), whole.mask())


def test_a_class_that_is_likeliest_only_between_two_rows_is_found():
    # Down the only column: class 0 falls, class 2 rises, class 1 stays between them and wins in the middle.
    column = np.asarray([[0.55, 0.05], [0.4, 0.4], [0.05, 0.55]], np.float32)[:, :, None]
    frame = Letterbox((100, 1), (2, 1), (2, 1), 0, 0)
    runs = likeliest(column, frame)
    assert runs.values.tolist() == [0, 1, 2]
    assert runs.lengths[1] == pytest.approx(20, abs=1)  # from 0.3 to 0.7 of the 50 pixels between the rows
    assert agrees(runs, enlarged(column, frame))


def test_of_equals_the_lower_class_wins():
    column = np.asarray([[1, 0], [0, 1]], np.float32)[:, :, None]
    frame = Letterbox((6, 1), (2, 1), (2, 1), 0, 0)  # pixels at -1/3, 0, 1/3, 2/3, 1, 4/3
    assert likeliest(column, frame).mask().ravel().tolist() == [0, 0, 0, 1, 1, 1]
    odd = Letterbox((5, 1), (2, 1), (2, 1), 0, 0)  # the middle pixel lies where both are equal
    assert likeliest(column, odd).mask().ravel().tolist() == [0, 0, 0, 1, 1]
    assert likeliest(column[::-1], odd).mask().ravel().tolist() == [1, 1, 0, 0, 0]


def test_probabilities_that_are_no_numbers_still_fill_the_mask():
    broken = np.full((3, *SMALL), np.nan, np.float32)
    broken[1, 5:9, 5:9] = 0.9
    broken[2, :, :20] = 0.6
    runs = likeliest(broken, Letterbox.fit((70, 90), SMALL))
    assert runs.lengths.sum() == 70 * 90


def test_a_mask_that_its_probabilities_contradict_is_filled_all_the_same():
    rng = np.random.default_rng(3)
    probabilities, frame = smooth(9, 5, 4.0), Letterbox.fit((90, 61), SMALL)
    runs = likeliest_runs(probabilities, rng.integers(0, 9, SMALL).astype(np.uint8), frame)
    assert runs.lengths.min() >= 1
    assert runs.lengths.sum() == 90 * 61


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 150), st.integers(1, 150)))
def test_indices_are_enlarged_to_the_nearest(seed, source):
    mask = np.random.default_rng(seed).integers(0, 4, SMALL).astype(np.uint8)
    frame = Letterbox.fit(source, SMALL)
    inner = mask[frame.top : frame.top + frame.inner[0], frame.left : frame.left + frame.inner[1]]
    wanted = cv2.resize(inner, source[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    np.testing.assert_array_equal(nearest_runs(mask, frame).mask(), wanted)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_run_lengths_are_those_of_pycocotools_and_come_back(height, width, classes, grain, seed):
    mask = np.random.default_rng(seed).integers(0, classes, (height, width)).astype(np.uint8)
    mask = np.repeat(np.repeat(mask, grain, 0), grain, 1)
    found = MaskRuns.of(mask).encoded()
    assert list(found) == np.unique(mask).tolist()
    for kind, (area, counts) in found.items():
        assert counts == coco.encode(np.asfortranarray(mask == kind))["counts"].decode()
        assert area == (mask == kind).sum()
    back = MaskRuns.decoded({kind: counts for kind, (_, counts) in found.items()}, mask.shape)
    np.testing.assert_array_equal(back.mask(), mask)
    np.testing.assert_array_equal(back.sampled(mask.shape), mask)
    assert back.encoded() == found


def test_enlarging_and_coding_are_the_same_from_runs_and_from_the_mask():
    frame = Letterbox.fit((900, 1200), SMALL)
    runs = likeliest(smooth(6, 11, 5.0), frame)
    assert runs.encoded() == MaskRuns.of(runs.mask()).encoded()


def test_a_thumbnail_has_the_nearest_pixels():
    mask = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert MaskRuns.of(mask).sampled((2, 3)).tolist() == mask[1::2, 1::2].tolist()
    assert MaskRuns.of(np.zeros((1, 1), np.uint8)).sampled((3, 2)).tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("text", ["", "abc", "0", "1\n", "P", "ü"])
def test_broken_run_lengths_are_told(text):
    with pytest.raises(DataError, match="run lengths"):
        MaskRuns.decoded({1: text}, (50, 50))
