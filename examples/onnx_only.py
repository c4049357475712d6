"""A bundle's ONNX file with onnxruntime, NumPy and Pillow alone: neither this project nor torch is needed.

    python examples/onnx_only.py BUNDLE/model.onnx picture.jpg

What the file needs to be used (classes, input size, grey of the border) is in its own metadata.
"""

import json
import sys

import numpy as np
import onnxruntime as ort
from PIL import Image, ImageOps


def letterbox(picture, height, width, fill):
    """The picture centred on grey (height, width, 3) uint8, with its scale and offset (left, top)."""
    scale = min(width / picture.width, height / picture.height)
    inner = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    canvas = Image.new("RGB", (width, height), (fill, fill, fill))
    canvas.paste(picture.resize(inner, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR), (left, top))
    return np.asarray(canvas), scale, (left, top)


def main(model, image):
    """Prints every head's answer as JSON lines."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    heads, size = json.loads(facts["trifocal.heads"]), json.loads(facts["trifocal.input"])
    picture = ImageOps.exif_transpose(Image.open(image)).convert("RGB")
    pixels, scale, offset = letterbox(picture, size["height"], size["width"], size["fill"])
    names = [output.name for output in session.get_outputs()]
    answers = dict(zip(names, session.run(names, {size["name"]: pixels[None]})))
    for name, head in heads.items():
        classes = head["classes"]
        if head["kind"] in ("classes", "multilabel"):
            values = answers[f"{name}.probabilities"][0]
            print(json.dumps({"head": name, **{c: round(float(v), 4) for c, v in zip(classes, values)}}))
        elif head["kind"] == "boxes":
            for box, score, kind in zip(*(answers[f"{name}.{part}"][0] for part in ("boxes", "scores", "classes"))):
                if score >= head["threshold"]:
                    corners = (box - np.tile(offset, 2)) / scale
                    row = {"class": classes[kind], "score": round(float(score), 4), "xyxy": corners.round(1).tolist()}
                    print(json.dumps({"head": name, **row}))
        else:
            shares = np.bincount(answers[f"{name}.mask"].ravel(), minlength=len(classes)) / pixels[..., 0].size
            print(
                json.dumps({"head": name, "share of pixels": {c: round(float(s), 4) for c, s in zip(classes, shares)}})
            )


if __name__ == "__main__":
    main(*sys.argv[1:3])
