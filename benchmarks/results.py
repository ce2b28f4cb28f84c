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
