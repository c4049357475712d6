"""Options: wrong ones are told, and how often one may be given."""

from __future__ import annotations

import pytest

from pipeline.cli_batch import main, settings_from
from pipeline.errors import ConfigError
from tests.unit.batch.helpers import fill
from tests.unit.bundles import known_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return known_bundle(tmp_path_factory.mktemp("model") / "known")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--batch", "0"), "--batch must be at least 1"),
        (("--tile", "-5"), "--tile must be at least 0"),
        (("--tile", "2"), "--tile must be 0 .* or at least 32 pixels, not 2"),
        (("--tile", "64", "--overlap", "0.95"), "--overlap must be"),
        (("--overlap", "0.5"), "--overlap is that of tiles; give their side too"),
        (("--threshold", "7"), "7 is not between 0 and 1"),
        (("--threshold", "half"), "half is not between 0 and 1"),
        (("--heads", ""), "no head ''; it has colour"),
        (("--tta", "spin"), "invalid choice: 'spin'"),
        (("--oups",), "unknown option --oups"),
        (("--engine", "onxruntime"), "did you mean 'onnxruntime'"),
        (("--format", "coco,xml"), "unknown format 'xml'"),
    ],
)
def test_wrong_options_are_told(arguments, told, model, tmp_path):
    folder = fill(tmp_path / "in", 1)
    with pytest.raises(Exception, match=told) as caught:
        main([str(folder), "--model", str(model), "--out", str(tmp_path / "out"), *arguments])
    assert caught.value.exit_code == 1


def test_an_empty_source_and_one_that_the_shell_took_apart_are_told():
    with pytest.raises(ConfigError, match="SOURCE is empty"):
        settings_from(["", "--model", "m", "--out", "o"])
    with pytest.raises(ConfigError, match=r"3 sources, a.png and more; .* a glob in quotes"):
        settings_from(["a.png", "b.png", "c.png", "--model", "m", "--out", "o"])


def test_formats_may_be_given_once_or_often_and_lists_may_have_spaces():
    words = ["in", "--model", "m", "--out", "o", "--format", "coco, csv", "--format", "yolo", "--format", "csv"]
    given = settings_from([*words, "--heads", "colour, things"])
    assert given.formats == ("coco", "csv", "yolo")
    assert given.heads == ("colour", "things")
