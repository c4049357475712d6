"""The same inference path as the service's, from Python.

python examples/predictor.py BUNDLE picture.jpg [more.png ...]
"""

import sys
from pathlib import Path

from serving.answers import Answer, BoxAnswer, LabelAnswer
from serving.predictor import Predictor


def main(bundle: str, *images: str) -> None:
    """Prints what the network sees in each picture."""
    predictor = Predictor.load(Path(bundle))
    print(predictor.choice.describe())
    for image, answer in zip(images, predictor.predict([Path(image) for image in images]), strict=True):
        if not isinstance(answer, Answer):
            print(f"{image}: {answer}")
            continue
        for name, head in answer.heads.items():
            classes = predictor.heads[name].classes
            if isinstance(head, LabelAnswer):
                print(image, name, ", ".join(f"{classes[i]} {head.probabilities[i]:.2f}" for i in head.chosen))
            elif isinstance(head, BoxAnswer):
                for box, score, kind in zip(head.boxes, head.scores, head.classes, strict=True):
                    print(image, name, classes[kind], f"{score:.2f}", [round(float(v)) for v in box])
            else:
                print(image, name, f"mask of {head.mask.shape[1]} x {head.mask.shape[0]} pixels")


if __name__ == "__main__":
    main(*sys.argv[1:])
