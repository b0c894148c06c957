"""Features that stay in the directions they are held in, while the gradient of a weight is worked out.

A weight's gradient is linear in every feature of the input. Where the features are held in r directions (F, r), it is that of a layer which
reads the r directions, times the directions' transpose. So the features need not be restored, and the gradient's own products are fewer.
"""

from math import prod

from memfit.forms import Projection
from memfit.operators.held import Restorable


def features_left(form: Restorable | None, shape: tuple[int, ...], features: int, products: int, weight_elements: int) -> int | None:
    """The mode of the features, where leaving it in its directions takes fewer multiplications than restoring it; else None.

    Of shapes alone, so that a plan knows it.

    Args:
        shape: of the held tensor; `features` is one of its modes.
        products: multiplications of the weight's gradient from the whole tensor.
    """
    if not isinstance(form, Projection):
        return None
    size, rank = shape[features], form.most_directions(shape, features)
    spared = prod(shape) * rank + products * (size - rank) // size
    return features if rank < size and weight_elements * rank < spared else None
