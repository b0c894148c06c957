"""What is let through to torch: complete programs made of data; and what is not, each with a word on what to do."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from planner.errors import BadModel
from service.archive import check_archive
from tests.service.small_model import export


class TwoInputs(nn.Module):
    """Gives a dict, and has guards that compare the inputs' batch sizes."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (left * right).mean(), "sum": left.reshape(left.shape[0] // 2, -1) + 1}


def refuse(path: Path, why: str) -> None:
    with pytest.raises(BadModel, match=why) as refused:
        check_archive(path)
    assert "torch.export.save" in str(refused.value) or "again" in str(refused.value), "an error says what to do next"


def change(source: Path, target: Path, edit: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of an archive with its entries edited."""
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    edit(entries)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return target


def edit_json(name: str, edit: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    def edit_entries(entries: dict[str, bytes]) -> None:
        key = next(key for key in entries if key.endswith(name))
        content = json.loads(entries[key])
        edit(content)
        entries[key] = json.dumps(content).encode()

    return edit_entries


def test_programs_are_let_through(model_file: Path, tmp_path: Path) -> None:
    check_archive(model_file)
    check_archive(export(TwoInputs(), torch.ones(4, 3), torch.ones(4, 3), to=tmp_path / "two.pt2"))


def test_an_archive_with_its_entries_written_anew_is_still_one(model_file: Path, tmp_path: Path) -> None:
    check_archive(change(model_file, tmp_path / "same.pt2", lambda entries: None))


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_anywhere_is_refused(share: float, model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = model_file.read_bytes()
    cut = tmp_path_factory.mktemp("cut") / "cut.pt2"
    cut.write_bytes(data[: int(share * len(data))])
    refuse(cut, "cut short|empty|not a .pt2")


def test_a_flipped_bit_is_found(model_file: Path, tmp_path: Path) -> None:
    data = bytearray(model_file.read_bytes())
    with zipfile.ZipFile(model_file) as archive:
        weight = next(entry for entry in archive.infolist() if entry.filename.endswith("weight_0"))
    data[weight.header_offset + 200] ^= 1
    (damaged := tmp_path / "damaged.pt2").write_bytes(data)
    refuse(damaged, "checksum|cut short or damaged")


def test_pickles_are_refused_by_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(pickle.dumps({"weight": [1.0]}))
    refuse(tmp_path / "a.pt2", "is a pickle")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "b.pt2")
    refuse(tmp_path / "b.pt2", "a pickle written by torch.save")
    (tmp_path / "c.pt2").write_bytes(b"GIF89a")
    refuse(tmp_path / "c.pt2", "is not a .pt2")
    with zipfile.ZipFile(tmp_path / "d.pt2", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refuse(tmp_path / "d.pt2", "no entry 'archive_format'")


class RunsCode:
    """What a pickle can do: call anything with anything."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("the upload ran code",)


def example_inputs_that_run_code() -> bytes:
    data = io.BytesIO()
    torch.save(((RunsCode(),), {}), data)
    return data.getvalue()


def add(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda entries: entries.update({f"{next(iter(entries)).split('/')[0]}/{name}": data})


def pickled(config: Any) -> None:
    next(iter(config["config"].values()))["use_pickle"] = True


def an_object(config: Any) -> None:
    config["config"]["hook"] = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": {"dtype": 7}}


def call(target: str) -> Callable[[Any], None]:
    return lambda program: program["graph_module"]["graph"]["nodes"][0].update(target=target)


def guard(expression: str) -> Callable[[Any], None]:
    return lambda program: program.update(guards_code=[expression])


def size(expression: str) -> Callable[[Any], None]:
    return lambda program: program["graph_module"]["graph"].update(note={"expr_str": expression})


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (edit_json("model_weights_config.json", pickled), "weight .* is stored as a pickle"),
        (edit_json("model_constants_config.json", an_object), "constant 'hook' is stored as a pickle"),
        (add("data/sample_inputs/model.pt", example_inputs_that_run_code()), "would run '(builtins|__builtin__) print'"),
        (add("data/sample_inputs/model.pt", pickle.dumps(RunsCode())), "example inputs"),
        (add("data/weights/model.pt", b"\x80\x02."), "of an old torch"),
        (add("data/aotinductor/model/model.so", b"\x7fELF"), "no part of an exported program"),
        (add("Data/sample_inputs/model.pt", b""), "no part of an exported program"),
        (add("models/second.json", b"{}"), "2 programs"),
        (add("models/../../etc/passwd", b""), "points out of it"),
        (lambda entries: entries.update({"/etc/passwd": b""}), "points out of it"),
        (add("archive_format", b"torchscript"), "not 'pt2'"),
        (edit_json("models/model.json", call("os.system")), "no operation of torch"),
        (edit_json("models/model.json", call("torch.serialization.os.system")), "no operation of torch"),
        (edit_json("models/model.json", guard("__import__('os').system('true')")), "more than arithmetic"),
        (edit_json("models/model.json", guard("().__class__.__base__.__subclasses__()")), "more than arithmetic"),
        (edit_json("models/model.json", guard("(lambda: 0)()")), "more than arithmetic"),
        (edit_json("models/model.json", size("eval('1')")), "more than arithmetic"),
        (edit_json("models/model.json", size("lambdify([], 'x')")), "more than arithmetic"),
        (lambda entries: entries.update({key: b"[" * 100_000 for key in entries if "/models/" in key}), "not JSON"),
    ],
)
def test_what_would_run_code_is_refused(edit: Callable[[dict[str, bytes]], None], why: str, model_file: Path, tmp_path: Path) -> None:
    refuse(change(model_file, tmp_path / "edited.pt2", edit), why)


@pytest.mark.parametrize(
    "expression", ["Mod(s0, 8)", "2*s0 + 1", "L['ids'].size()[0] == L['labels'].size()[0]", "Max(1, FloorDiv(s0, 2))", "s0 <= 4"]
)
def test_sizes_and_guards_that_only_compute_are_let_through(expression: str, model_file: Path, tmp_path: Path) -> None:
    check_archive(change(model_file, tmp_path / "edited.pt2", edit_json("models/model.json", guard(expression))))


def test_compressed_and_doubled_entries_are_refused(model_file: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(model_file) as archive, zipfile.ZipFile(tmp_path / "packed.pt2", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    refuse(tmp_path / "packed.pt2", "compressed")
    with zipfile.ZipFile(change(model_file, tmp_path / "twice.pt2", lambda entries: None), "a") as archive:
        name = archive.namelist()[0]
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(name, b"")
    refuse(tmp_path / "twice.pt2", "an entry twice")
