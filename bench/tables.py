"""Tables of measurements in docs/results.md, each between its marks."""

import platform
from pathlib import Path

import torch

RESULTS = Path("docs/results.md")


def write_between(name: str, note: str, heading: list[str], rows: list[list[str]]) -> None:
    """Put a table between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; at the end of the page where there are no such marks."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    lines = [heading, ["---", *["--:"] * (len(heading) - 1)], *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    host = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    text = f"{begin}\n\n{note} On {host}.\n\n{table}\n\n{end}"
    page = RESULTS.read_text()
    before, found, rest = page.partition(begin)
    RESULTS.write_text(before + text + rest.partition(end)[2] if found else f"{page.rstrip()}\n\n{text}\n")
