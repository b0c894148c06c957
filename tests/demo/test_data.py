"""The demo's data: parts that share nothing, and a shift that is always the same."""

import torch

from demo import data


def test_no_image_is_in_two_parts():
    digits = data.load()
    upright = [image.numpy().tobytes() for part in (digits.source, digits.source_held_out) for image in part.images]
    assert len(set(upright)) == len(upright)
    parts = (digits.source, digits.source_held_out, digits.device, digits.held_out)
    assert sum(len(part) for part in parts) == 1797


def test_the_shift_is_the_same_every_time_and_keeps_the_digits():
    digits = data.load().source.part(0, 32)
    once, again = data.shifted(digits, seed=3), data.shifted(digits, seed=3)
    assert torch.equal(once.images, again.images)
    assert torch.equal(once.digits, digits.digits)
    assert not torch.allclose(once.images, digits.images, atol=0.5)


def test_batches_are_whole_and_hold_different_images():
    digits = data.load().device
    batches = list(digits.batches(100))
    assert [len(batch) for batch in batches] == [100] * (len(digits) // 100)
    assert len({image.numpy().tobytes() for batch in batches for image in batch.images}) == 100 * len(batches)
