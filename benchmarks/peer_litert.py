"""The other peer's file: Google's AI Edge quantizer, static int8, from a float LiteRT file.

It needs an environment of its own (`pip install ai-edge-quantizer`), without Keras:
`python benchmarks/peer_litert.py float.tflite calib.npy out.tflite`. Writes `out.tflite` and
prints the seconds that calibrating and quantizing took, on the clock and of all cores together;
making the float file is not among them.
"""

import sys
import time
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe


def main(float_path: str, calibration_path: str, out: str) -> None:
    samples = np.load(calibration_path)
    (name,) = Interpreter(float_path).get_signature_list()["serving_default"]["inputs"]
    start, work = time.perf_counter(), time.process_time()
    peer = quantizer.Quantizer(float_path, recipe.static_wi8_ai8())
    data = {"serving_default": [{name: x[None]} for x in samples]}
    content = peer.quantize(peer.calibrate(data)).quantized_model
    Path(out).write_bytes(content)
    print(f"seconds {time.perf_counter() - start:.2f} {time.process_time() - work:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
