"""Work by several threads at once: all of it, once."""

from collections import Counter
from itertools import pairwise
from threading import Lock

import pytest
import torch

from memfit.threads import LEAST_PIECE, MOST_THREADS, at_once, by_pieces


@pytest.fixture(params=[1, 2, MOST_THREADS])
def team(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(autouse=True)
def torch_threads(monkeypatch: pytest.MonkeyPatch, team: int) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: team)


def test_everything_is_done_once(team: int) -> None:
    done, lock = Counter[int](), Lock()

    def work(number: int) -> None:
        with lock:
            done[number] += 1

    for count in (0, 1, 3, 100):
        done.clear()
        at_once(count, work)
        assert done == Counter(range(count))


def test_pieces_follow_one_another(team: int) -> None:
    pieces: list[tuple[int, int, int]] = []
    for elements, count in ((1, team), (LEAST_PIECE * team, team)):
        pieces.clear()
        by_pieces(1003, elements, lambda start, stop, piece: pieces.append((piece, start, stop)), unit=8)
        ordered = sorted(pieces)
        assert len(ordered) == (1 if elements == 1 else count)
        assert ordered[0][1] == 0 and ordered[-1][2] == 1003
        assert all(one[2] == other[1] and one[2] % 8 == 0 for one, other in pairwise(ordered))


def test_an_error_reaches_the_caller(team: int) -> None:
    def work(number: int) -> None:
        if number == 1:
            raise ValueError("no such piece")

    with pytest.raises(ValueError, match="no such piece"):
        at_once(3, work)
    at_once(3, lambda number: None)  # and the team works on
