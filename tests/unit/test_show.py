"""`lightning show-data`: each mistake is one line with the nearest right spelling."""

from __future__ import annotations

import pytest

from pipeline.data.show import main
from pipeline.errors import ConfigError

SHAPES = ["--data.shapes", "{images: 10, size: 32}", "--data.size", "32"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data.bachsize", "3"], "did you mean '--data.batch_size'"),
        (["--confg", "x"], "did you mean '--config'"),
        (["--data.augment", "stong"], "--data.augment cannot be 'stong'; did you mean 'strong'"),
        (["--images", "many"], "--images cannot be 'many'"),
        (["--images", "0"], "--images is 1 or more"),
        (
            ["--config", "mine.yaml"],
            r"unknown key 'bachsize' of data; did you mean 'batch_size'\? \(in mine.yaml, line 3\)",
        ),
        ([*SHAPES, "--out", "mine.yaml/a.png"], "--out mine.yaml/a.png: File exists"),
    ],
)
def test_a_mistake_is_one_line(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("data:\n  size: 64\n  bachsize: 3\n")
    with pytest.raises(ConfigError, match=told) as error:
        main(arguments)
    assert "\n" not in str(error.value)
