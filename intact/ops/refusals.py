"""Operations and layers for which LiteRT has no kernel, with the reason."""

from typing import Any

REFUSED: dict[str, tuple[str, ...]] = {
    "LiteRT has no kernel that factors or inverts matrices": (
        *("Cholesky", "CholeskyInverse", "Det", "Eig", "Eigh", "Inv", "Logdet", "Lstsq"),
        *("LuFactor", "MatrixRank", "Pinv", "Qr", "SVD", "Slogdet", "Solve", "SolveTriangular"),
    ),
    "it computes one result for the whole batch, and a file takes one sample or many": (
        *("AllClose", "Corrcoef", "Correlate", "Flipud", "Histogram", "MapCoordinates", "PSNR"),
        *("Scatter", "ScatterUpdate", "Vander", "Vdot", "Vsplit", "Vstack"),
    ),
    "the size of its output depends on the values, and LiteRT's tensors have fixed sizes": (
        *("Nonzero", "Unique"),
    ),
    "LiteRT's integer kernels take no complex numbers": (
        *("Imag", "Polar", "ViewAsComplex", "ViewAsReal"),
    ),
    "LiteRT has no kernel for it": (
        *("CTCDecode", "CTCLoss", "Gcd", "Lcm", "Nextafter", "SSIM", "View"),
    ),
    "it computes a derivative": ("JVP",),
    "Keras does not record what it computes outside of a layer's `call`, in which it is unrolled": (
        *("Cond", "ForiLoop", "Scan", "Switch", "WhileLoop"),
    ),
    "it is unrolled in a layer's `call`, but not over a batch of unknown size; write it for the "
    "whole batch": ("Map", "VectorizedMap"),
    "it draws random numbers in inference": ("ElasticTransform",),
    "it prepares data with its own code; apply it before the model": (
        *("ContrastLimitedAdaptiveHistogramEqualization", "Equalization", "MaxNumBoundingBoxes"),
    ),
    "it hashes or splits text, for which LiteRT has no kernel; apply it before the model, and give "
    "the model the numbers as an input of int32": (
        *("HashedCrossing", "Hashing", "StringLookup", "TextVectorization"),
    ),
    "it contains code of another framework": (
        *("FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"),
    ),
}
"""By the reason, the classes of operations and layers that are refused."""

_REASONS = {name: reason for reason, names in REFUSED.items() for name in names}


def reason_of(layer: Any) -> str | None:
    """Why a layer or operation of Keras is refused in all its forms, or None.

    Args:
        layer: The layer or operation.
    """
    own = type(layer).__module__.startswith("keras.")
    return _REASONS.get(type(layer).__name__) if own else None
