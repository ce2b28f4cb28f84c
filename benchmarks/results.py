"""The records of the benchmarks, and the pages that are made from them.

    python benchmarks/results.py     writes docs/results.md and docs/peers.md from the records

Each section of a page is a file in `records`, written by the script that measured it. A row keeps
the version that made it, until a script measures it again and finds another value.
"""

import datetime
import json
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results.md"
PEERS = ROOT / "docs" / "peers.md"
RECORDS = Path(__file__).parent / "records"
UNKNOWN = "processor not recorded"

HEAD = """# Results

Made from the records of the benchmarks by `python benchmarks/results.py`; a test fails when it is
stale. `make zoo` measures the rows of the zoo that take no training, and writes this page.

A version is that of the package, with the commit and its day. Rows of an older version than the
newest of their table are marked †: the code has changed since.
"""

PEERS_HEAD = """# Beside other tools

`make peers` makes the environments of all tools, and measures them and intact in turns on the same
models and data. The tools are TensorFlow's converter, Google's AI Edge quantizer, TFMOT on Keras 2,
and Keras' own `model.quantize`. A ratio below 1 says that intact is faster. The processor stands
below each table, with its vector instructions: `avx512_vnni` and `avx_vnni` multiply bytes in one
instruction, `avx2` alone does not. The page is made from records by `python benchmarks/results.py`.
"""


@dataclass
class Record:
    """A section of the page, as its script wrote it.

    Args:
        name: Its heading.
        text: What was measured, in paragraphs.
        rows: The table, its heading first.
        versions: The version that made each row but the heading.
        processors: The processor that each of them was measured on.
        commands: What measures it again.
        notes: What stands below the table.
        place: Its place on the page.
    """

    name: str
    text: str
    rows: list[list[str]]
    versions: list[str]
    processors: list[str]
    commands: list[str]
    notes: str = ""
    place: int = 1000


def version() -> str:
    """The package's version, with the commit and its day."""
    import intact

    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%h, %cs"]
    done = subprocess.run(command, capture_output=True, text=True)
    commit = done.stdout.strip() or f"unknown, {datetime.date.today()}"
    return f"{intact.__version__} ({commit})"


def processor() -> str:
    """The processor by its name, with the vector instructions that LiteRT could use."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"model name\s*: (.*)", text)
    flags = (re.search(r"flags\s*: (.*)", text) or ["", ""])[1].split()
    best = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni") if flag in flags]
    return f"{name[1] if name else platform.machine()} ({', '.join(best)})"


def read(name: str) -> Record | None:
    """A section's record, if there is one."""
    path = RECORDS / f"{name}.json"
    return Record(**json.loads(path.read_text())) if path.exists() else None


def records() -> list[Record]:
    """All records, in the order of the page."""
    found = (read(path.stem) for path in RECORDS.glob("*.json"))
    return sorted((r for r in found if r), key=lambda r: (r.place, r.name))


def write_section(name: str, text: str, rows: list[list[str]], command: str) -> None:
    """Record a section and write the pages anew.

    Args:
        name: Its heading.
        text: What was measured, in paragraphs; how their lines are broken does not matter.
        rows: The table; the first row is its heading.
        command: What measures it again.
    """
    before = read(name)
    made = {}
    if before is not None and before.rows[0] == rows[0]:
        triples = zip(before.rows[1:], before.versions, before.processors, strict=True)
        made = {tuple(row): (version, on) for row, version, on in triples}
    now = version(), processor()
    each = [made.get(tuple(row), now) for row in rows[1:]]
    paragraphs = "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
    save(
        Record(
            name,
            paragraphs,
            rows,
            [version for version, _ in each],
            [on for _, on in each],
            [command],
            place=before.place if before else len(list(RECORDS.glob("*.json"))) + 1,
        )
    )
    write_page()


def save(record: Record) -> None:
    """Write a record."""
    RECORDS.mkdir(exist_ok=True)
    text = json.dumps(asdict(record), indent=1, ensure_ascii=False)
    # A row of the table stays on one line.
    text = re.sub(r"\[\s*((?:\"(?:[^\"\\]|\\.)*\",?\s*)+)\]", _one_line, text)
    (RECORDS / f"{record.name}.json").write_text(text + "\n")


def _one_line(match: re.Match) -> str:
    return "[" + " ".join(match[1].split("\n")).replace("  ", "").strip() + "]"


def section_rows(name: str) -> list[list[str]]:
    """The rows of a section's table as they are now, without the heading.

    Args:
        name: The section's heading.
    """
    record = read(name)
    return record.rows[1:] if record else []


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


# The page ------------------------------------------------------------------------------


def table(rows: list[list[str]]) -> str:
    """Rows as a table of Markdown, the heading first."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines)


def day(version: str) -> str:
    """The day of a version, for comparing: versions of one day count as one."""
    match = re.search(r"\d{4}-\d\d-\d\d", version)
    return match[0] if match else ""


def marked(versions: list[str]) -> list[str]:
    """Versions, with a mark behind those that are older than the newest of them."""
    newest = max(map(day, versions), default="")
    return [f"{made} †" if day(made) < newest else made for made in versions]


def unbroken(text: str) -> str:
    """A text that stays on one line in a narrow column of a table."""
    return text.replace(" ", "\u00a0").replace("-", "\u2011")


def section(record: Record) -> str:
    """A section of the page."""
    rows = [list(row) for row in record.rows]
    notes = [record.notes] if record.notes else []
    versions = marked(record.versions)
    for row, made in zip(rows[1:], versions, strict=True):
        row[0] += " †" if made.endswith("†") else ""
    by = "; ".join(sorted(set(versions), key=lambda made: (day(made), made), reverse=True))
    on = ", ".join(sorted(set(record.processors)))
    commands = "\n\n".join(f"`{command}`" for command in record.commands)
    parts = [
        f"## {record.name}",
        record.text,
        table(rows),
        *notes,
        f"Made by {by}; {on}.",
        commands,
    ]
    return "\n\n".join(parts)


def page(zoo: str) -> str:
    """The results page.

    Args:
        zoo: Its first section.
    """
    sections = [section(r) for r in records() if r.name != "zoo" and not of_peers(r)]
    return "\n\n".join([HEAD.strip(), zoo, *sections]) + "\n"


def peers_page() -> str:
    """The page of the peers."""
    sections = [section(r) for r in records() if of_peers(r)]
    return "\n\n".join([PEERS_HEAD.strip(), *sections]) + "\n"


def of_peers(record: Record) -> bool:
    """Whether a record is on the page of the peers."""
    return record.name.startswith("peers_")


def write_page() -> None:
    """Write the pages from the records."""
    from zoo import zoo_section

    RESULTS.write_text(page(zoo_section()))
    PEERS.write_text(peers_page())


if __name__ == "__main__":
    write_page()
