"""A registered model through plain MLflow: no code of this project.

python examples/mlflow_pyfunc.py models:/trifocal@champion
"""

import sys

import mlflow
import numpy as np


def main(reference):
    """Prints the names and shapes of the answers on two grey images of the model's own size, 320 where it takes any."""
    model = mlflow.pyfunc.load_model(reference)
    (_, height, width, channels) = model.metadata.get_input_schema().inputs[0].shape
    height, width = (320 if side < 0 else side for side in (height, width))
    answers = model.predict(np.full((2, height, width, channels), 114, np.uint8))
    for name, value in answers.items():
        print(name, value.dtype, value.shape)


if __name__ == "__main__":
    main(sys.argv[1])
