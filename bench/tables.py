"""Tables of measurements in the pages of docs/, each between its marks."""

import platform
from collections.abc import Iterable
from pathlib import Path

import torch

RESULTS = Path("docs/results.md")
Rows = list[list[str]]


def write_between(name: str, note: str, heading: Iterable[str], rows: Rows, page: Path = RESULTS) -> None:
    """Put a table between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; at the end of the page where there are no such marks."""
    begin, end = _marks(name)
    headings = list(heading)
    lines = [headings, ["---", *["--:"] * (len(headings) - 1)], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    host = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    text = f"{begin}\n\n{note} On {host}.\n\n{table}\n\n{end}"
    before, found, rest = page.read_text().partition(begin)
    page.write_text(before + text + rest.partition(end)[2] if found else f"{before.rstrip()}\n\n{text}\n")


def with_those_of_others(name: str, rows: dict[str, Rows], models: Iterable[str], page: Path = RESULTS) -> Rows:
    """Rows of some models with those that the table has of the others, by the first cell."""
    begin, end = _marks(name)
    known: dict[str, Rows] = {}
    for line in page.read_text().partition(begin)[2].partition(end)[0].splitlines():
        row = line.strip()[2:-2].split(" | ")
        known.setdefault(row[0], []).append(row)
    known |= rows
    return [row for model in models for row in known.get(model, [])]


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
