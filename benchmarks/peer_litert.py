"""The file of Google's AI Edge quantizer, from a float LiteRT file.

    python benchmarks/peer_litert.py FOLDER out.tflite int8

It needs an environment of its own (`pip install ai-edge-quantizer`), without Keras. The cost is
that of calibrating and quantizing; `peers.py` adds that of the float file, which TensorFlow's
converter made.
"""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe
from measuring import measured, write

RECIPES = {
    "dynamic_range": recipe.dynamic_wi8_afp32,
    "int8": recipe.static_wi8_ai8,
    "int16x8": recipe.static_wi8_ai16,
}


def main(folder: str, out: str, scheme: str) -> None:
    float_path = f"{folder}/converter.float.tflite"
    samples = dict(np.load(f"{folder}/samples.npz"))
    names = Interpreter(float_path).get_signature_list()["serving_default"]["inputs"]
    # The converter may have renamed a single input.
    arrays = samples if len(names) > 1 else dict(zip(names, samples.values(), strict=True))
    count = len(next(iter(arrays.values())))
    with measured() as cost:
        peer = quantizer.Quantizer(float_path, RECIPES[scheme]())
        ranges = None
        if peer.need_calibration:
            steps = [{name: arrays[name][i : i + 1] for name in names} for i in range(count)]
            ranges = peer.calibrate({"serving_default": steps})
        content = bytes(peer.quantize(ranges).quantized_model)
    write(out, content, cost)


if __name__ == "__main__":
    main(*sys.argv[1:])
