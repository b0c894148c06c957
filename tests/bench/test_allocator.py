"""The measured peak of steps whose peak is known."""

import torch

from bench.allocator import step_peak_bytes, storages

MEBIBYTE = 2**20
MARGIN = 4096  # of small things that torch makes by the way


def mebibyte() -> torch.Tensor:
    return torch.empty(MEBIBYTE, dtype=torch.uint8)


def test_a_storage_counts_once_and_whole():
    whole = mebibyte()
    assert list(storages([whole, whole[:10], whole.view(4, -1)]).values()) == [MEBIBYTE]


def test_the_peak_is_what_lives_together():
    def step():
        first = mebibyte()
        del first
        second, third = mebibyte(), mebibyte()
        del second, third

    assert 2 * MEBIBYTE <= step_peak_bytes(step) <= 2 * MEBIBYTE + MARGIN


def test_static_bytes_and_what_the_first_step_left_behind_count():
    parameter, state = mebibyte(), []

    def step():
        if not state:
            state.append(mebibyte())
        gradient = mebibyte()
        del gradient

    assert 3 * MEBIBYTE <= step_peak_bytes(step, lambda: [parameter]) <= 3 * MEBIBYTE + MARGIN


def test_a_peak_of_the_first_step_alone_does_not_count():
    sizes = [5 * MEBIBYTE, MEBIBYTE]

    def step():
        torch.empty(sizes.pop(0), dtype=torch.uint8)

    assert MEBIBYTE <= step_peak_bytes(step) <= MEBIBYTE + MARGIN


def test_what_the_first_step_replaced_does_not_count():
    buffers = [mebibyte()]

    def step():
        buffers[0] = torch.empty(2 * MEBIBYTE, dtype=torch.uint8)

    assert 4 * MEBIBYTE <= step_peak_bytes(step, lambda: buffers) <= 4 * MEBIBYTE + MARGIN
