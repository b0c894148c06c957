"""The steps of the Dockerfile, done here: no container engine is at hand where the tests run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from time import monotonic, sleep

import pytest

from demo.server import free_port

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
pytestmark = pytest.mark.slow


def array(instruction: str) -> list[str]:
    """The last instruction of a kind, as the JSON array it is written as."""
    found: list[str] = json.loads(re.findall(rf"{instruction}\s+(\[.*\])", DOCKERFILE)[-1])
    return found


def test_what_the_image_copies_and_installs_serves_and_is_healthy(tmp_path: Path) -> None:
    source, place = tmp_path / "src", tmp_path / "memfit"
    source.mkdir()
    for sources in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, flags=re.MULTILINE):
        *names, target = sources.split()
        for name in names:
            to = source / target / name if target.endswith("/") else source / target
            shutil.copytree(ROOT / name, to) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, to)
    (install,) = re.findall(r"^RUN /opt/memfit/bin/(pip install .*)$", DOCKERFILE, flags=re.MULTILINE)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    own = Path(subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True).strip())
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # those are installed here already, by the same constraints
    arguments = [*shlex.split(install), "--no-deps", "--no-build-isolation", "--ignore-installed"]
    done = subprocess.run([python, "-m", *arguments], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)

    port, data = free_port(), tmp_path / "data"
    environment = {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    command = [{"8000": str(port), "/var/lib/memfit": str(data)}.get(word, word) for word in array("CMD")]
    check = [word.replace(":8000", f":{port}") for word in array(r"HEALTHCHECK.*CMD")] if "HEALTHCHECK" in DOCKERFILE else []
    assert command[:2] == ["memfit", "serve"], "the last instruction is what runs"
    refused = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1 and "memfit keys add" in refused.stderr, "it does not listen to others without a key"
    subprocess.run(["memfit", "keys", "add", "me", "--data", str(data)], cwd=tmp_path, env=environment, check=True, capture_output=True)
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = monotonic() + 60
            while subprocess.run(check, env=environment, capture_output=True).returncode:
                assert monotonic() < deadline and process.poll() is None
                sleep(0.5)
        finally:
            process.terminate()
    assert process.returncode is not None


def test_the_image_does_not_run_as_root() -> None:
    users = re.findall(r"^(USER|CMD) *(.*)$", DOCKERFILE, flags=re.MULTILINE)
    assert users[-2] == ("USER", "memfit") or [name for name, _ in users[-2:]] == ["USER", "CMD"]
    assert "slim" in re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE)[-1]
