"""Which dialogues a step learns from: what the base has shown of a batch serves several of the scorer's steps.

To run the base costs many times what the scorer's own step does, and one pass over some hundred dialogues does not
teach it all that they hold. A round therefore has `BATCHES` batches, each of which is learned from several times, in
an order drawn anew each time. Everything follows from the number of the step: a resumed run needs to know nothing else.
"""

import random

BATCHES = 32  # in a round


def source(step: int, times: int, seed: int) -> int:
    """Number of the batch that `step` learns from, if each is learned from so many times.

    In the first of its times a round's batches come in order.
    """
    first = step // (BATCHES * times) * BATCHES
    again, place = divmod(step % (BATCHES * times), BATCHES)
    order = list(range(BATCHES))
    if again:
        random.Random(f"{seed}-{first}-{again}").shuffle(order)
    return first + order[place]


def is_new(step: int, times: int) -> bool:
    """Whether `step` learns from a batch for the first time."""
    return step % (BATCHES * times) < BATCHES


def begins(step: int, times: int) -> bool:
    """Whether a round begins with `step`: nothing of earlier ones is needed any more."""
    return step % (BATCHES * times) == 0
