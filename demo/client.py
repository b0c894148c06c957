"""What a client of the service does: ask for a plan, follow its job, fetch the checkpoint."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx


def ask_for_plan(client: httpx.Client, model: Path, sample: Path, request: dict[str, Any]) -> dict[str, Any]:
    """POST model, sample and request in one call; the plan as it stands, still to be worked on."""
    with model.open("rb") as model_file, sample.open("rb") as sample_file:
        answer = client.post(
            "/v1/plans",
            files={"model": (model.name, model_file), "sample": (sample.name, sample_file)},
            data={"request": json.dumps(request)},
        )
    plan: dict[str, Any] = accepted(answer).json()
    return plan


def progress(client: httpx.Client, job: str) -> Iterator[dict[str, Any]]:
    """Follow a job's server-sent events until it ends: each has `state`, `stage`, `fraction` and `message`."""
    with client.stream("GET", f"/v1/jobs/{job}/events", timeout=None) as events:
        for line in events.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))


def plan(client: httpx.Client, plan_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = accepted(client.get(f"/v1/plans/{plan_id}")).json()
    return answer


def download_checkpoint(client: httpx.Client, plan_id: str, path: Path) -> None:
    path.write_bytes(accepted(client.get(f"/v1/plans/{plan_id}/checkpoint")).content)


def accepted(answer: httpx.Response) -> httpx.Response:
    """The answer, unless it is a problem: then the service's own words of what to do next."""
    if answer.is_success:
        return answer
    raise SystemExit(f"{answer.request.method} {answer.request.url.path}: {answer.json()['detail']}")
