"""A client of the service in one file; needs httpx alone.

python examples/client.py http://127.0.0.1:8000 picture.jpg [more.png ...]
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx

Masks = Literal["rle", "png", "polygons", "none"]


@dataclass(frozen=True)
class Box:
    """A found object: x1, y1, x2, y2 in pixels of the picture as it was sent, upright."""

    kind: str
    score: float
    xyxy: tuple[float, float, float, float]


@dataclass(frozen=True)
class Answer:
    """One picture's answer, heads by name; `error` in place of it says what is wrong with this picture."""

    name: str
    width: int = 0
    height: int = 0
    labels: dict[str, list[str]] | None = None
    boxes: dict[str, list[Box]] | None = None
    masks: dict[str, Any] | None = None
    error: str | None = None


class ServiceError(Exception):
    """The whole request was refused: `status`, and the problem document."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(f"{problem.get('title')}: {problem.get('detail')}. {problem.get('remedy')}")
        self.status, self.problem = status, problem


class Client:
    """Asks a service; tries again where it is told to.

    Args:
        url: the service's address.
        key: its API key, where it needs one.
        tries: requests in all where the service is busy.
    """

    def __init__(self, url: str, key: str | None = None, tries: int = 4) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http, self._tries = httpx.Client(base_url=url, headers=headers, timeout=60), tries

    def predict(
        self,
        pictures: list[Path],
        heads: list[str] | None = None,
        threshold: float | None = None,
        masks: Masks = "rle",
    ) -> list[Answer]:
        """One Answer per picture in order; raises ServiceError when the whole request is refused."""
        files = [("images", (path.name, path.read_bytes())) for path in pictures]
        options: dict[str, str] = {"masks": masks}
        if heads is not None:
            options["heads"] = ",".join(heads)
        if threshold is not None:
            options["threshold"] = str(threshold)
        return [_answer(entry) for entry in self._post(files, options)["images"]]

    def _post(self, files: list[Any], options: dict[str, str]) -> dict[str, Any]:
        for left in range(self._tries - 1, -1, -1):
            response = self._http.post("/predict", files=files, params=options)
            if response.status_code in {429, 503} and left:
                time.sleep(float(response.headers.get("Retry-After", "1")))
                continue
            if response.status_code != 200:
                raise ServiceError(response.status_code, response.json())
            break
        return dict(response.json())


def _answer(entry: dict[str, Any]) -> Answer:
    if "error" in entry:
        return Answer(entry["name"], error=f"{entry['error']['title']}: {entry['error']['detail']}")
    heads: dict[str, Any] = entry["heads"]
    return Answer(
        entry["name"],
        entry["size"]["width"],
        entry["size"]["height"],
        labels={name: head["labels"] for name, head in heads.items() if "labels" in head},
        boxes={
            name: [Box(row["class"], row["score"], tuple(row["box"])) for row in head["boxes"]]
            for name, head in heads.items()
            if head["kind"] == "boxes"
        },
        masks={name: head for name, head in heads.items() if head["kind"] == "mask"},
    )


def main(url: str, *pictures: str) -> None:
    """Prints what the service sees in each picture."""
    for answer in Client(url).predict([Path(picture) for picture in pictures], masks="none"):
        if answer.error:
            print(f"{answer.name}: {answer.error}")
            continue
        for name, labels in (answer.labels or {}).items():
            print(f"{answer.name}: {name}: {', '.join(labels)}")
        for name, boxes in (answer.boxes or {}).items():
            for box in boxes:
                print(f"{answer.name}: {name}: {box.kind} {box.score:.2f} at {[round(side) for side in box.xyxy]}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python client.py http://127.0.0.1:8000 PICTURE ...")
    main(*sys.argv[1:])
