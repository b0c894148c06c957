"""Programs that are kept answer as new ones do, whoever asks at the same time, and nobody else waits for them."""

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event
from time import sleep

import httpx
import pytest

from models import ProfileRecord
from planner.errors import InfeasibleBudget
from planner.profile import Profile
from planner.request import Budget, Optimizer, PlanRequest
from planner.solver import best_plan, solve
from service.documents import PROFILE
from service.programs import MOST, KeptPrograms
from service.store import Store
from tests.planner import networks
from tests.service.running import Running, keep

PATIENCE = 120.0
THREADS = 40  # that the service has for quick calls


@pytest.fixture(scope="module")
def profile() -> Profile:
    return networks.profile_of(*networks.graph_of("convolutional"))


@pytest.fixture
def record(tmp_path: Path, profile: Profile) -> tuple[Store, ProfileRecord]:
    store = Store(tmp_path)
    store.open()
    return store, ProfileRecord(id="p", content_digest=keep(store, "profiles", PROFILE.dump_json(profile)))


def request(percent: int, optimizer: Optimizer = Optimizer()) -> PlanRequest:  # noqa: B008 (frozen)
    return PlanRequest(Budget(share=percent / 100), optimizer, own_loop=True)  # undivided, or hardly a budget needs a lossy plan


def answer(plan: Callable[[], object]) -> tuple[object, ...]:
    """What depends neither on the machine's pace nor on what was asked before: a plan's loss, or the least budget. (Of plans that lose
    alike, which is found first depends on the moments that programs already have rows of.)
    """
    try:
        found = plan()
    except InfeasibleBudget as error:
        return "infeasible", error.least_budget_bytes
    assert found.predicted_peak_bytes <= found.budget_bytes  # type: ignore[attr-defined]
    return round(found.fidelity, 3), found.budget_bytes  # type: ignore[attr-defined]


def test_those_who_ask_at_a_time_are_answered_as_each_alone(record: tuple[Store, ProfileRecord], profile: Profile) -> None:
    """More kinds of requests than are kept, so that programs come and go under those who use them."""
    store, stored = record
    kept = KeptPrograms(store)
    optimizers = (Optimizer(), Optimizer("sgd", 0.9), Optimizer("adam"))
    assert len(optimizers) > MOST
    requests = [request(percent, optimizer) for percent in (5, 90, 25, 60, 15, 40, 10, 30) for optimizer in optimizers]
    together = Barrier(6)

    def ask(part: int) -> list[tuple[object, ...]]:
        together.wait(PATIENCE)
        found = []
        for each in requests[part::2]:
            with kept.of(stored, each) as programs:
                assert programs.request == each
                found.append(answer(lambda: best_plan(programs, search_seconds=0)))
        return found

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, [0, 1, 0, 1, 0, 1]))
    alone = [answer(lambda: solve(profile, each, search_seconds=0)) for each in requests]  # noqa: B023
    assert answers == [alone[part::2] for part in (0, 1, 0, 1, 0, 1)]
    assert {kind for kind, *_ in alone} > {"infeasible", 1.0}, "budgets of all kinds were asked for"


def test_one_request_has_programs_at_a_time(record: tuple[Store, ProfileRecord]) -> None:
    kept = KeptPrograms(record[0])
    has, may_go, second = Event(), Event(), Event()

    def first() -> None:
        with kept.of(record[1], request(50)):
            has.set()
            assert may_go.wait(PATIENCE)
            assert not second.is_set(), "another had them meanwhile"

    def other() -> None:
        assert has.wait(PATIENCE)
        with kept.of(record[1], request(60, Optimizer("adam"))):
            pass  # these are others
        may_go.set()
        with kept.of(record[1], request(60)):
            second.set()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(first), pool.submit(other)]:
            done.result(PATIENCE)


def test_those_asked_for_longest_ago_go(record: tuple[Store, ProfileRecord]) -> None:
    kept = KeptPrograms(record[0], most=1)
    with kept.of(record[1], request(50)) as programs:
        made = programs.profile
    with kept.of(record[1], request(60)) as programs:
        assert programs.profile is made, "they are made once"
    with kept.of(record[1], request(60, Optimizer("adam"))) as programs:
        assert programs.profile is not made
    del programs
    gc.collect()
    assert gc.get_referrers(made) == [], "nobody has them any more"


def test_what_a_mishap_left_is_not_used_again(record: tuple[Store, ProfileRecord]) -> None:
    kept = KeptPrograms(record[0])
    with pytest.raises(MemoryError), kept.of(record[1], request(50)) as programs:
        raise MemoryError
    with kept.of(record[1], request(50)) as again:
        assert again.profile is not programs.profile
    with pytest.raises(InfeasibleBudget), kept.of(record[1], request(1)) as programs:
        best_plan(programs)
    with kept.of(record[1], request(50)) as after:
        assert after.profile is again.profile, "an answer is no mishap"


@pytest.mark.slow
def test_quick_calls_do_not_wait_for_those_that_solve(service: Running, model_file: Path, sample_file: Path) -> None:
    ids = {
        kind: service.client.post(f"/v1/{kind}s", content=file.read_bytes()).raise_for_status().json()["id"]
        for kind, file in (("model", model_file), ("sample", sample_file))
    }
    profile = service.client.post("/v1/profiles", json=ids).raise_for_status().json()["id"]
    place = f"/v1/profiles/{profile}"
    service.until(place, lambda answer: answer["state"] == "ready")
    with service.context.database.reading() as session:
        stored = session.get_one(ProfileRecord, profile)
    body = {"profile": profile, "budget": "100%"}
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=service.server.address, timeout=PATIENCE, limits=limits) as client, ThreadPoolExecutor(THREADS + 5) as pool:
        with service.context.programs.of(stored, PlanRequest(None)):  # as somebody's long search does
            waiting = [pool.submit(client.post, "/v1/plans", json=body) for _ in range(THREADS)]
            waiting += [pool.submit(client.get, f"{place}/frontier", params={"points": 2}) for _ in range(5)]
            sleep(1)  # until they wait
            assert client.get(place, params={"measured": False}, timeout=5).status_code == 200
            assert not any(done.done() for done in waiting)
        assert [done.result(PATIENCE).status_code for done in waiting] == [202] * THREADS + [200] * 5
