"""The program is killed again and again while jobs wait and run: every job ends once, and every file is whole."""

import hashlib
import random
from pathlib import Path
from time import monotonic, sleep

import httpx
import pytest

from tests.service.running import FINISHED, serving, stage_children

BATCH_SIZES = (8, 6, 4)  # each a profile of its own
KILLS = 2  # a job that was interrupted three times is not started again
SECONDS = 240


@pytest.mark.slow
def test_jobs_end_once_though_the_program_is_killed(tmp_path: Path, model_file: Path, sample_file: Path) -> None:
    data, chance = tmp_path / "data", random.Random(0)
    plans: list[str] = []
    for kill in range(KILLS + 1):
        with serving(data) as (process, client):
            if not plans:
                plans = [ask(client, model_file, sample_file, size) for size in BATCH_SIZES]
            if kill < KILLS:
                sleep(chance.uniform(1.0, 4.0))
                process.kill()
                process.wait()
                continue
            ended = wait(client, plans)
            jobs = [client.get(f"/v1/jobs/{plan['job']}").json() for plan in ended]
            listed = client.get("/v1/plans").json()["plans"]
    assert [plan["state"] for plan in ended] == ["infeasible"] * len(plans), [plan["problem"] for plan in ended]
    assert [job["state"] for job in jobs] == ["succeeded"] * len(plans)
    assert sorted(plan["id"] for plan in listed) == sorted(plans), "none twice, none lost"
    assert len({plan["profile"] for plan in ended}) == len(plans)
    kept = [path for kind in ("programs", "samples", "profiles") for path in (data / kind).glob("*/*")]
    assert len(kept) == 2 + len(plans)
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.stem for path in kept), "no file is torn"
    assert not any(stage_children(folder) for folder in (data / "work").iterdir())


def ask(client: httpx.Client, model: Path, sample: Path, batch_size: int) -> str:
    parts = {
        "model": model.read_bytes(),
        "sample": sample.read_bytes(),
        "request": (None, f'{{"budget": "1 KiB", "batch_size": {batch_size}}}'),
    }
    id: str = client.post("/v1/plans", files=parts).raise_for_status().json()["id"]  # type: ignore[arg-type]
    return id


def wait(client: httpx.Client, plans: list[str]) -> list[dict[str, object]]:
    deadline = monotonic() + SECONDS
    while True:
        found = [client.get(f"/v1/plans/{plan}").raise_for_status().json() for plan in plans]
        if all(plan["state"] in FINISHED for plan in found):
            return found
        assert monotonic() < deadline, [plan["state"] for plan in found]
        sleep(0.3)
