"""Problem documents over HTTP: one handler for all errors, and how they look in the description of the calls."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from planner.errors import PlannerError
from service.outages import OUTAGES, outage_of
from service.problems import INTERNAL, InvalidRequest, Problem, ProblemDocument, document_of

logger = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"


class ProblemAnswer(BaseModel):
    """A problem document (RFC 9457). The facts of a problem stand beside these members."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = Field(description="Stable name of the problem.", examples=["/problems/bad-budget"])
    title: str = Field(description="The problem in general.", examples=["The budget is not an amount of memory"])
    status: int = Field(description="HTTP status.", examples=[422])
    detail: str = Field(description="What happened here, and what to do next.")


RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "What is wrong with the request.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}},
    },
}


def install(app: FastAPI) -> None:
    """Let every error of the app be answered by `answer_with_problem`."""
    for kind in (Problem, PlannerError, RequestValidationError, HTTPException, ClientDisconnect, *OUTAGES, Exception):
        app.add_exception_handler(kind, answer_with_problem)


async def answer_with_problem(request: Request, error: Exception) -> JSONResponse:
    """The one handler of errors."""
    match error:
        case RequestValidationError():
            document = InvalidRequest.of(error.errors()).document
        case HTTPException():
            phrase = HTTPStatus(error.status_code).phrase
            detail = f"{request.method} {request.url.path}: {error.detail}. The calls are described at /docs."
            document = ProblemDocument(phrase.lower().replace(" ", "-"), phrase, error.status_code, detail, {})
        case ClientDisconnect():  # nobody reads this
            document = ProblemDocument("client-disconnect", "The client went away", 400, "The body was cut short. Send it again.", {})
        case _:
            error = outage_of(error) or error
            document = document_of(error)
    if document.kind == INTERNAL:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse(document.as_json(), document.status, getattr(error, "headers", None), MEDIA_TYPE)
