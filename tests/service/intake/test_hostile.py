"""Whatever is uploaded, nothing of it runs: it is refused in words, or written anew without what would."""

import contextlib
import io
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from planner.errors import BadModel
from service.intake.rewrite import rewrite
from tests.service.intake.hostile import Canary, hostile_files, rewritten
from tests.service.small_model import BATCH

NAMES = list(hostile_files(Path("canary")))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def refuse(path: Path, why: str) -> None:
    with pytest.raises(BadModel, match=why) as refused:
        rewrite(path, path.with_name("new.pt2"))
    assert re.search(r"torch\.export|again|Replace|Write", str(refused.value)), "an error says what to do next"


def test_there_are_forty_and_more() -> None:
    assert len(NAMES) >= 40


@pytest.mark.parametrize("name", NAMES)
def test_hostile_files_are_refused_or_made_harmless(name: str, model_file: Path, tmp_path: Path, canary: Path) -> None:
    hostile = hostile_files(canary)[name]
    upload = rewritten(model_file, tmp_path / "upload.pt2", hostile.edit)
    if hostile.why is not None:
        refuse(upload, hostile.why)
    else:
        rewrite(upload, tmp_path / "new.pt2")
        program = torch.export.load(tmp_path / "new.pt2")
        assert program.example_inputs is None
        program.module()
    assert not canary.exists()


@pytest.mark.parametrize(
    "name",
    [
        "sample inputs that run code",
        "a weight that is a pickle",
        "weights in one pickle",
        "constants in one pickle",
        "an opaque object",
        "a size that opens a file",
        "a guard that opens a file",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_torch_itself_would_have_run_them(name: str, model_file: Path, tmp_path: Path, canary: Path) -> None:
    upload = rewritten(model_file, tmp_path / "upload.pt2", hostile_files(canary)[name].edit)
    with contextlib.suppress(Exception):
        torch.export.load(upload).module()(torch.randn(BATCH, 3, 16, 16))
    # torch leaves this behind when it fails, and then refuses to open anything
    torch._export.serde.serialize._CURRENT_DESERIALIZER = None
    assert canary.exists()


@pytest.mark.parametrize("tenth", range(10))
def test_a_file_cut_at_any_tenth_is_refused(tenth: int, model_file: Path, tmp_path: Path) -> None:
    data = model_file.read_bytes()
    (cut := tmp_path / "cut.pt2").write_bytes(data[: len(data) * tenth // 10])
    refuse(cut, "cut short|empty|not a .pt2")


def test_pickles_are_refused_by_what_they_are(tmp_path: Path, canary: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(pickle.dumps(Canary(canary)))
    refuse(tmp_path / "a.pt2", "is a pickle")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "b.pt2")
    refuse(tmp_path / "b.pt2", "a pickle written by torch.save")
    (tmp_path / "c.pt2").write_bytes(b"GIF89a")
    refuse(tmp_path / "c.pt2", "is not a .pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "d.pt2"))
    refuse(tmp_path / "d.pt2", "a TorchScript file")
    assert not canary.exists()


def test_a_zip_bomb_is_not_unpacked(model_file: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(model_file) as archive, zipfile.ZipFile(bomb := tmp_path / "bomb.pt2", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, bytes(2**28) if name.endswith("weight_0") else archive.read(name))
    assert bomb.stat().st_size < 2**20
    refuse(bomb, "compressed")


def test_members_that_share_their_bytes_are_refused(model_file: Path, tmp_path: Path) -> None:
    data = bytearray(rewritten(model_file, tmp_path / "plain.pt2", lambda entries: None).read_bytes())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        largest = max(entries, key=lambda entry: entry.file_size)
        start = archive.start_dir
    # every member of the list at the end points to the largest
    for _ in entries:
        name, extra, comment = struct.unpack_from("<HHH", data, start + 28)
        struct.pack_into("<III", data, start + 16, largest.CRC, largest.file_size, largest.file_size)
        start += 46 + name + extra + comment
    (shared := tmp_path / "shared.pt2").write_bytes(data)
    refuse(shared, "twice|damaged")


def test_a_member_twice_and_an_encrypted_one_are_refused(model_file: Path, tmp_path: Path) -> None:
    twice = rewritten(model_file, tmp_path / "twice.pt2", lambda entries: None)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], b"")
    refuse(twice, "twice")
    data = bytearray(rewritten(model_file, tmp_path / "plain.pt2", lambda entries: None).read_bytes())
    data[data.rfind(b"PK\x01\x02") + 8] |= 1
    (encrypted := tmp_path / "encrypted.pt2").write_bytes(data)
    refuse(encrypted, "encrypted")


def test_a_flipped_bit_is_found(model_file: Path, tmp_path: Path) -> None:
    data = bytearray(model_file.read_bytes())
    with zipfile.ZipFile(model_file) as archive:
        weight = next(entry for entry in archive.infolist() if entry.filename.endswith("weight_0"))
    data[weight.header_offset + 200] ^= 1
    (damaged := tmp_path / "damaged.pt2").write_bytes(data)
    refuse(damaged, "damaged|NaN")
