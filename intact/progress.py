"""The progress of long work."""

import sys

import keras


class Progress(keras.utils.Progbar):
    """A progress bar with a caption; the caption alone where no terminal or notebook shows bars.

    Args:
        caption: What is being done.
        target: How many steps there are; None if that is not known.
        verbose: 1 shows it, 0 nothing.

    Example:

    >>> progress = Progress("Calibrating", target=2)
    Calibrating
    >>> progress.add(2)
    """

    def __init__(self, caption: str, target: int | None, verbose: int = 1) -> None:
        draws = sys.stdout.isatty() or "ipykernel" in sys.modules
        super().__init__(target, verbose=verbose if draws else 0)
        if verbose:
            sys.stdout.write(f"{caption}\n")
            sys.stdout.flush()
