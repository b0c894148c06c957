"""The pages keep their promises: links lead somewhere, commands exist, code compiles."""

import json
import re
from itertools import chain
from pathlib import Path

import pytest

from planner.errors import PlannerError
from service.app import create_app
from service.problems import Problem

ROOT = Path(__file__).parent.parent
PAGES = sorted(chain(ROOT.glob("*.md"), ROOT.glob("docs/**/*.md")))
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as hosts of Markdown make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_relative_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


@every_page
def test_make_targets_exist(page):
    text = page.read_text()
    commands = re.findall(r"`make ((?:[a-z]+ ?)+)", text) + re.findall(r"^make ((?:[a-z]+ ?)+)", text, flags=re.MULTILINE)
    mentioned = set(" ".join(commands).split())
    assert mentioned <= TARGETS


@every_page
def test_code_compiles(page):
    text = page.read_text()
    for code in code_blocks(text, "python"):
        compile(code, str(page), "exec")
    for document in code_blocks(text, "json"):
        json.loads(document)


def subclasses(base: type) -> set[type]:
    return set(base.__subclasses__()).union(*map(subclasses, base.__subclasses__()))


def test_the_page_of_errors_names_every_problem():
    page = (ROOT / "docs" / "errors.md").read_text()
    assert create_app  # all of the service is imported, so all of its problems are known
    raised = {error.kind for base in (PlannerError, Problem) for error in subclasses(base) if "kind" in vars(error)}
    named = set(re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| (`[^|]+) \|", page, flags=re.MULTILINE))))
    assert raised - {"bad-request"} <= named
    assert named - raised <= {"internal", "out-of-memory", "over-limit"}


def test_index_lists_every_page():
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in re.findall(r"\]\(([^)]+)\)", index.read_text())}
    assert set(ROOT.glob("docs/**/*.md")) - {index} <= linked
