"""Mutates a model file in as many ways as asked for, and gives each to the intake: `python -m tests.service.intake.fuzz 10000`.

A mutant is refused as `BadModel`, or written anew; then torch opens it, or fails with an ordinary exception. Anything else is a find.
"""

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from planner.errors import BadModel
from service.intake.rewrite import rewrite
from tests.service.intake.hostile import Entries, rewritten
from tests.service.small_model import BATCH, SmallNet, export

NUMBERS = (0, 1, -1, 7, 2**31, 2**48, 2**63 - 1, 2**63, -(2**63), 10**30, 1.5, 1e300)
VALUES = (None, True, "", "x", "../x", "__import__('os')", [], {}, {"as_int": 1}, {"as_none": True}, "torch.ops.aten.mul.Tensor", *NUMBERS)


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """Flip, cut, double or overwrite a few places."""
    mutant = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        place = chance.randrange(len(mutant) or 1)
        match chance.randrange(5):
            case 0:
                mutant[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                mutant[place : place + 4] = chance.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"PK\x01\x02", b"PK\x05\x06"))
            case 2:
                del mutant[place : place + chance.choice((1, 8, 500, 10**6))]
            case 3:
                mutant[place:place] = mutant[place : place + chance.choice((1, 30, 2000))]
            case _:
                mutant[place:place] = chance.randbytes(chance.choice((1, 4, 64)))
    return bytes(mutant)


def mutate_json(content: Any, chance: random.Random) -> Any:
    """Replace, drop or double values somewhere in a document."""
    for _ in range(chance.choice((1, 1, 1, 3, 10))):
        if not (places := list(_places(content))):
            break
        holder, key = chance.choice(places)
        match chance.randrange(4):
            case 0:
                holder[key] = chance.choice(VALUES)
            case 1:
                del holder[key]
            case 2:
                other, place = chance.choice(places)
                with contextlib.suppress(KeyError, IndexError):
                    holder[key] = json.loads(json.dumps(other[place]))
            case _ if isinstance(holder, dict):
                holder[chance.choice(("as_graph", "as_expr", "x", "name"))] = holder.pop(key)
            case _:
                holder.insert(key, holder[key])
    return content


def _places(content: Any) -> Any:
    stack = [content]
    while stack:
        holder = stack.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            yield holder, key
            if isinstance(holder[key], (dict, list)):
                stack.append(holder[key])


def mutant(model: Path, target: Path, chance: random.Random) -> Path:
    """One mutant: of the file as a whole, of a member's bytes, or of a document."""
    with zipfile.ZipFile(model) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]

    def edit(entries: Entries) -> None:
        name = chance.choice([name for name in names if name.endswith(".json")] + names[:1])
        if name.endswith(".json") and chance.random() < 0.8:
            entries[name] = json.dumps(mutate_json(json.loads(entries[name]), chance)).encode()
        else:
            entries[name] = mutate_bytes(entries[name], chance)

    if chance.random() < 0.3:
        target.write_bytes(mutate_bytes(model.read_bytes(), chance))
        return target
    return rewritten(model, target, edit)


def fuzz(model: Path, count: int, seed: int, folder: Path) -> Counter[str]:
    """How many mutants were refused, opened, and let through although torch cannot open them."""
    outcomes: Counter[str] = Counter()
    for number in range(count):
        chance = random.Random(seed * 1_000_003 + number)
        upload = mutant(model, folder / "mutant.pt2", chance)
        try:
            rewrite(upload, folder / "new.pt2")
        except BadModel as error:
            outcomes["refused" if str(error).endswith(".") else "refused without a word"] += 1
            continue
        try:
            torch.export.load(folder / "new.pt2").module()
            outcomes["opened"] += 1
        except Exception:  # as the stage that opens it answers: bad-model
            torch._export.serde.serialize._CURRENT_DESERIALIZER = None
            outcomes["let through, but torch cannot open it"] += 1
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    ran: list[str] = []
    sys.addaudithook(lambda event, args: ran.append(f"{event} {args}") if event in ("os.system", "subprocess.Popen", "os.exec") else None)
    with tempfile.TemporaryDirectory() as folder:
        model = export(SmallNet(), torch.randn(BATCH, 3, 16, 16), to=Path(folder, "model.pt2"))
        begin = time.monotonic()
        outcomes = fuzz(model, given.count, given.seed, Path(folder))
    print(dict(outcomes), f"{time.monotonic() - begin:.0f} s; processes started: {ran}")
    sys.exit(bool(ran))


if __name__ == "__main__":
    main()
