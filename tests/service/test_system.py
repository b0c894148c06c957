"""The service tells what it runs on and how it confines what it opens."""

from pathlib import Path

import pytest

from service.sandbox import NoSandbox, find_sandbox
from service.settings import Settings
from tests.service.running import Running, running


def test_the_machine_and_the_limits_are_shown(service: Running) -> None:
    system = service.client.get("/v1/system").raise_for_status().json()
    assert system["sandbox"] == find_sandbox("auto")
    assert 0 < system["limits"]["memory_bytes"] < system["memory_bytes"]
    assert system["limits"]["wall_seconds"] == 3600


def test_settings_bind_the_stages(tmp_path: Path, model_file: Path) -> None:
    with running(tmp_path / "data", sandbox="off", stage_memory_bytes=150 * 2**20) as service:
        assert service.client.get("/v1/system").json()["sandbox"] == "none"
        answer = service.client.post("/v1/models", content=model_file.read_bytes())
        assert (answer.status_code, answer.json()["type"]) == (507, "/problems/out-of-memory")


def test_the_environment_sets_the_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SANDBOX", "MEMFIT_SANDBOX"):
        with monkeypatch.context() as context:
            context.setenv(name, "require")
            context.setattr("service.sandbox._works", lambda command: False)
            with pytest.raises(NoSandbox):
                _ = Settings(data_dir=tmp_path).confinement
