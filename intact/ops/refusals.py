"""What LiteRT has no kernels for, and why."""

from typing import Any

REFUSED: dict[str, tuple[str, ...]] = {
    "LiteRT has no kernel that factors or inverts matrices": (
        *("Cholesky", "CholeskyInverse", "Det", "Eig", "Eigh", "Inv", "Logdet", "Lstsq"),
        *("LuFactor", "MatrixRank", "Pinv", "Qr", "SVD", "Slogdet", "Solve", "SolveTriangular"),
    ),
    "it computes one result for the whole batch, and a file takes one sample or many": (
        *("AllClose", "Corrcoef", "Correlate", "Flipud", "Histogram", "MapCoordinates", "PSNR"),
        *("Scatter", "ScatterUpdate", "SegmentMax", "SegmentMin", "SegmentProd", "SegmentSum"),
        *("Vander", "Vdot", "Vsplit", "Vstack"),
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
    "it takes a function for each sample, or its derivative; write what it does for the batch": (
        *("JVP", "Map", "VectorizedMap"),
    ),
    "outside of a layer's `call`, in which it is unrolled, Keras does not say what it computes": (
        *("Cond", "ForiLoop", "Scan", "Switch", "WhileLoop"),
    ),
    "it draws random numbers in inference": ("ElasticTransform",),
    "it prepares data with code of its own; let it do so before the model": (
        *("AutoContrast", "ContrastLimitedAdaptiveHistogramEqualization", "Equalization"),
        *("MaxNumBoundingBoxes", "RandomCrop"),
    ),
    "it hashes or splits text, for which LiteRT has no kernel; do so before the model": (
        *("HashedCrossing", "Hashing", "StringLookup", "TextVectorization"),
    ),
    "it holds code of another framework": (
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
