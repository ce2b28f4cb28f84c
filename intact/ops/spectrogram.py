"""Spectrograms."""

from math import log10
from typing import Any

from keras import layers, ops

from intact.numerics.tensors import Tensor, to_numpy
from intact.ops.base import Case, Op
from intact.ops.registry import register_op


@register_op
class MelSpectrogram(Op):
    """The power of each frequency, summed in the bands of the mel scale."""

    keras_layers = (layers.MelSpectrogram,)
    litert = ("CONV_2D", "FULLY_CONNECTED", "GATHER")
    notes = "`top_db` counts from the loudest value of each sample, and not of the batch."
    cases = (
        Case(
            lambda: layers.MelSpectrogram(
                64, 32, 64, sampling_rate=8000, num_mel_bins=6, power_to_db=False, mag_exp=1.0
            ),
            (256,),
        ),
    )

    def trace(self, layer: Any, args: tuple, kwargs: dict, tracer: Any) -> Any:
        (x,) = args
        bands = to_numpy(
            layer.linear_to_mel_weight_matrix(
                num_mel_bins=layer.num_mel_bins,
                num_spectrogram_bins=layer.fft_length // 2 + 1,
                sampling_rate=layer.sampling_rate,
                lower_edge_hertz=layer.min_freq,
                upper_edge_hertz=layer.max_freq,
            )
        )

        def spectrogram(x: Tensor) -> Tensor:
            real, imaginary = ops.stft(
                x, layer.sequence_length, layer.sequence_stride, layer.fft_length, layer.window
            )
            power = ops.square(real) + ops.square(imaginary)
            y = ops.matmul(power if layer.mag_exp == 2 else power ** (layer.mag_exp / 2), bands)
            return ops.swapaxes(self.decibels(layer, y) if layer.power_to_db else y, -1, -2)

        return tracer.expand(layer, spectrogram, x)

    def decibels(self, layer: Any, power: Tensor) -> Tensor:
        """Powers in decibels, with a lower limit."""
        reference = 10.0 * log10(max(abs(float(layer.ref_power)), layer.min_power))
        level = ops.log10(ops.maximum(power, layer.min_power)) * 10.0 - reference
        loudest = ops.max(level, axis=tuple(range(1, len(level.shape))), keepdims=True)
        return ops.maximum(level, loudest - layer.top_db)
