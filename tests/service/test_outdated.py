"""What an earlier memfit stored and this one does not read is said in words, and made anew when it is asked for again."""

import hashlib
from pathlib import Path

import pytest

from models import PlanRecord, ProfileRecord
from tests.service.running import FINISHED, post_plan, problem, running

pytestmark = pytest.mark.slow


def test_an_outdated_profile_and_plan_are_a_problem_until_they_are_made_anew(tmp_path: Path, model_file: Path, sample_file: Path) -> None:
    with running(tmp_path / "data") as service:
        plan = post_plan(service, {"budget": "1 KiB"}, model_file.read_bytes(), sample_file.read_bytes()).raise_for_status().json()
        plan = service.until(f"/v1/plans/{plan['id']}", lambda plan: plan["state"] in FINISHED)
        profile = service.client.get(f"/v1/profiles/{plan['profile']}").raise_for_status().json()
        assert profile["measured"]["plain_peak_bytes"]
        assert service.client.get(f"/v1/profiles/{plan['profile']}?measured=false").json() == profile | {"measured": None, "timeline": None}
        content = b'{"shape": "of another time"}'
        digest = hashlib.sha256(content).hexdigest()
        (file := tmp_path / "old").write_bytes(content)
        service.context.store.keep("profiles", file, digest)
        with service.context.database.transaction() as session:
            session.get_one(ProfileRecord, plan["profile"]).content_digest = digest
            old = PlanRecord(profile_id=plan["profile"], state="ready", request_json="{}", plan_json=content.decode())
            session.add(old)
            session.flush()
        facts = problem(service.client.get(f"/v1/profiles/{plan['profile']}"), 409, "outdated")
        assert (facts["model"], facts["sample"]) == (plan["model"], plan["sample"])
        problem(service.client.get(f"/v1/plans/{old.id}"), 409, "outdated")
        assert service.client.get("/v1/plans").status_code == 200, "lists show it"
        again = service.client.post("/v1/plans", json={"profile": plan["profile"], "budget": "1 KiB"}).raise_for_status().json()
        assert again["job"] is not None, "the profile has to be measured anew"
        service.until(f"/v1/plans/{again['id']}", lambda plan: plan["state"] in FINISHED)
        assert service.client.get(f"/v1/profiles/{plan['profile']}").json()["measured"]["plain_peak_bytes"]

        with service.context.database.transaction() as session:
            session.get_one(ProfileRecord, plan["profile"]).content_digest = digest
        asked = service.client.post("/v1/profiles", json={"model": plan["model"], "sample": plan["sample"]}).raise_for_status().json()
        assert asked["id"] == plan["profile"] and asked["state"] == "queued"
        service.until(f"/v1/profiles/{plan['profile']}?measured=false", lambda profile: profile["state"] == "ready")
        assert service.client.get(f"/v1/profiles/{plan['profile']}").status_code == 200
