"""The results page, section by section."""

import re
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "docs" / "results.md"


def write_section(name: str, text: str, rows: list[list[str]], command: str) -> None:
    """Replace a section of the results page, or add it.

    Args:
        name: Its heading.
        text: What was measured, in paragraphs; how their lines are broken does not matter.
        rows: The table; the first row is its heading.
        command: What measures it again.
    """
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    paragraphs = "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
    section = "\n".join([f"## {name}", "", paragraphs, "", *lines, "", f"`{command}`", "", ""])
    page = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
    parts = re.split(r"(?m)^(?=## )", page)
    kept = [p for p in parts if not p.startswith(f"## {name}\n")]
    place = next((i for i, p in enumerate(parts) if p.startswith(f"## {name}\n")), len(kept))
    kept.insert(place, section)
    RESULTS.write_text("".join(p.rstrip() + "\n\n" for p in kept).rstrip() + "\n")


def section_rows(name: str) -> list[list[str]]:
    """The rows of a section's table as they are now, without the heading.

    Args:
        name: The section's heading.
    """
    page = RESULTS.read_text() if RESULTS.exists() else ""
    section = re.search(rf"(?ms)^## {name}\n(.*?)(?=^## |\Z)", page)
    lines = re.findall(r"(?m)^\| (.*) \|$", section[1]) if section else []
    return [line.split(" | ") for line in lines[2:]]


def mean_row(rows: list[list[str]], worst: int) -> list[str]:
    """The rows of several seeds as one: the mean score, and the rest of the worst of them.

    Args:
        rows: Rows whose third cell is a score in percent.
        worst: Which cell says how bad a row is.
    """
    scores = [float(row[2].split()[0]) for row in rows]
    each = ", ".join(f"{score:.2f}" for score in scores)
    rest = max(rows, key=lambda row: float(row[worst] or 0))[3:]
    return [*rows[0][:2], f"{sum(scores) / len(scores):.2f} % ({each})", *rest]
