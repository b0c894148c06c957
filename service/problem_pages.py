"""A page for every type of problem: the documents' `type` leads there."""

from html import escape
from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import HTMLResponse

from planner.errors import PlannerError
from service.problem_answers import RESPONSES
from service.problems import INTERNAL, NotFound, Problem, document_of, out_of_memory, over_limit

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<h1>{title}</h1><p><code>/problems/{kind}</code>, status {status}</p><p>{text}</p>
<p>The problem's own <code>detail</code> says what happened and what to do next; its other members are the facts.</p></html>"""

router = APIRouter(tags=["problems"], responses=RESPONSES)


@router.get("/problems/{kind}", response_class=HTMLResponse, operation_id="get_problem_type")
def get_problem_type(kind: Annotated[str, Path(examples=["infeasible-budget"])]) -> HTMLResponse:
    """What a type of problem means."""
    pages = _pages()
    if kind not in pages:
        raise NotFound("type of problem", kind, "Problems name theirs in the member 'type'.")
    title, status, text = pages[kind]
    return HTMLResponse(PAGE.format(kind=escape(kind), title=escape(title), status=status, text=escape(text)))


def _pages() -> dict[str, tuple[str, int, str]]:
    """Title, status and meaning of every type."""
    pages = {}
    for document in (out_of_memory("", ""), over_limit("", "", 0), document_of(Exception())):
        text = "The service's own mistake; its log has the particulars." if document.kind == INTERNAL else "A stage ended at its limit."
        pages[document.kind] = document.title, document.status, text
    for error in (*_kinds(Problem), *_kinds(PlannerError)):
        status = error.status if issubclass(error, Problem) else 422
        pages[error.kind] = error.title, status, (error.__doc__ or "").strip().splitlines()[0] if error.__doc__ else error.title
    return pages


def _kinds(base: type[Problem] | type[PlannerError]) -> "set[type[Problem] | type[PlannerError]]":
    below = base.__subclasses__()
    found: set[type[Problem] | type[PlannerError]] = {each for each in below if "kind" in vars(each)}
    return found.union(*(_kinds(each) for each in below))
