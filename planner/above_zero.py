"""Room for the elements above zero of a value after a rectifier: how many a bitmap may have to hold.

Training changes their number little: the share of zeros stays within 1.5 % of itself (measured over fine-tunes of ResNet-20 and
MobileNetV2), so twice that is left. A batch differs from the next as its samples do, by 1/√n of that for n samples. All batches of the
profile, and all parts that a step may go through them in, fit in any case.
"""

from math import ceil, sqrt

import torch
from torch import Tensor

from planner.parts import halvings

ZEROS_LEFT = 0.97  # of the share of zeros of the profile's samples
DEVIATIONS = 2  # of a sample's share above zero
DIGITS = 1e4


def room_above_zero(batches: list[Tensor]) -> tuple[float, float]:
    """`share` and `spread` of `memfit.forms.Bitmap`.

    Args:
        batches: of each batch the share above zero in its samples. Shape (samples,) each.
    """
    shares = torch.cat(batches).double()
    share = 1 - ZEROS_LEFT * (1 - float(shares.mean()))
    spread = DEVIATIONS * float(shares.std(correction=0))
    for batch in batches:
        for size in halvings(len(batch)):
            most = max(float(part.double().mean()) for part in batch.split(size))
            spread = max(spread, (most - share) * sqrt(size))
    return ceil(share * DIGITS) / DIGITS, ceil(spread * DIGITS) / DIGITS
