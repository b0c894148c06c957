"""From an upload to an archive that torch may open."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

from service.intake.archive import open_archive
from service.intake.payloads import finite, read_payloads
from service.intake.program import rewritten_program

ROOT = "model"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same model twice is the same archive


def rewrite(source: Path, target: Path) -> None:
    """Write a new archive from what is understood of an uploaded one: program, weights and constants.

    Example inputs, guards and extra files are left out. Equal models give equal archives.

    Raises:
        BadModel: what the file is instead, or what in it cannot be let through, and what to do.
        UnsupportedOperation: the program calls what is no operation of a training step.
    """
    with open_archive(source) as archive:
        program = rewritten_program(archive.json("models/model.json"))
        payloads = {kind: read_payloads(archive, kind) for kind in ("weights", "constants")}
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
            for kind, tensors in payloads.items():
                for member in tensors.members:
                    _write(new, member, finite(tensors, member, archive.chunks(member)))
                _write(new, f"data/{kind}/model_{kind}_config.json", [tensors.config_json])
            _write(new, "models/model.json", [program])
            _write(new, "data/sample_inputs/model.pt", [])
            for name, content in (
                ("archive_format", b"pt2"),
                ("archive_version", b"0"),
                (".data/version", b"6\n"),
                ("byteorder", b"little"),
            ):
                _write(new, name, [content])


def _write(archive: zipfile.ZipFile, name: str, chunks: Iterable[bytes]) -> None:
    entry = zipfile.ZipInfo(f"{ROOT}/{name}", EPOCH)
    with archive.open(entry, "w", force_zip64=True) as member:
        for chunk in chunks:
            member.write(chunk)
