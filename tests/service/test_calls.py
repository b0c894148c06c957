"""Every call of the description, with what fits it and what does not: never an answer of 5xx, and each as it is described."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from service.openapi import description
from tests.service.running import FINISHED, Running, post_plan, running

EXAMPLES = int(os.environ.get("MEMFIT_FUZZ_EXAMPLES", "20"))
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
calls = schemathesis.openapi.from_dict(json.loads(description()))
found: dict[str, list[str]] = {}  # ids of things that are there, by the first part of their path


@schemathesis.serializer("application/offset+octet-stream")
def piece(context: object, value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, model_file: Path, sample_file: Path) -> Iterator[Running]:
    """A service with one of everything."""
    with running(tmp_path_factory.mktemp("data"), stage_seconds=60) as service:
        plan = post_plan(service, {"budget": "80%"}, model_file.read_bytes(), sample_file.read_bytes()).raise_for_status().json()
        plan = service.until(f"/v1/plans/{plan['id']}", lambda plan: plan["state"] in FINISHED)
        assert plan["state"] == "ready", plan["problem"]
        upload = service.client.post("/v1/uploads", headers={"tus-resumable": "1.0.0", "upload-length": "10"})
        device = service.client.post("/v1/devices", json={"name": "one", "memory_bytes": 2**30, "system_bytes": 2**28})
        found.update(
            plans=[plan["id"]],
            profiles=[plan["profile"]],
            jobs=[plan["job"]],
            models=[plan["model"]],
            samples=[plan["sample"]],
            uploads=[upload.headers["location"].rpartition("/")[2]],
            devices=[device.json()["id"]],
        )
        yield service


def aimed(case: Case) -> Case:
    """Half of what is asked for by an id is there; nothing of that is deleted."""
    kind = case.path.split("/")[2] if case.path.count("/") > 1 else ""
    id = (case.path_parameters or {}).get("id")
    if kind in found and id is not None and case.method != "DELETE" and len(str(id)) % 2:
        case.path_parameters["id"] = found[kind][0]
    return case


@calls.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
def test_no_call_makes_the_service_fail(case: Case, there: Running) -> None:
    aimed(case).call_and_validate(base_url=there.server.address, checks=CHECKS, timeout=30)
