"""Runs many random models, and gathers what became of them."""

import re
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from fuzz.checks import check
from fuzz.models import Sample, samples


@dataclass
class Report:
    """What became of the models.

    Args:
        counts: How many were quantized, refused for a reason, or failed in a way.
        failures: Of each way to fail, the shortest model and the error.
    """

    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[str, tuple[Sample, BaseException]] = field(default_factory=dict)

    def add(self, sample: Sample) -> None:
        """Check one model."""
        try:
            self.counts[check(sample)] += 1
        except Exception as error:
            way = _way(error)
            self.counts[f"FAILED: {way}"] += 1
            shortest = self.failures.get(way)
            if shortest is None or len(sample.lines) < len(shortest[0].lines):
                self.failures[way] = sample, error

    def __str__(self) -> str:
        lines = [f"{sum(self.counts.values())} models"]
        lines += [f"{count:6} {what}" for what, count in self.counts.most_common()]
        for way, (sample, error) in self.failures.items():
            lines += ["", way, str(sample), *traceback.format_exception(error)[-4:]]
        return "\n".join(lines)


def _way(error: BaseException) -> str:
    """Where an error comes from, and how it begins; the same for those of one cause."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "intact" in Path(f.filename).parts or "fuzz" in f.filename]
    last = (own or frames)[-1]
    text = re.sub(r"\d+", "#", str(error))[:90]
    return f"{type(error).__name__}, {Path(last.filename).name}:{last.lineno}: {text!r}"


def run(examples: int, seed: int) -> Report:
    """Check random models.

    Args:
        examples: How many.
        seed: Which; the same seed makes the same models.

    Returns:
        What became of them.
    """
    report = Report()

    @seeded(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(samples())
    def every(sample: Sample) -> None:
        report.add(sample)

    every()
    return report
