"""How many left images a worker generates together: fewer while GPU memory is short, and more again after it."""

from collections import Counter

FIRST_WAIT = 8
"""Batches that succeed at a smaller size before the larger one, which failed once, is tried again: a failure costs
about one batch, which is little beside them."""


class BatchSize:
    """The batch size of one worker. GPU memory may run out because of one large photo, or of another process.

    A size that failed is tried again after `FIRST_WAIT` batches at half of it, and after twice as many each time that
    it fails again: a GPU that can never hold it fails about as often as the number of batches has binary digits.

    Args:
        largest: the size that the spec asks for.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.now = largest
        self._failures: Counter[int] = Counter()
        self._successes = 0

    def ran_out_of_memory(self) -> None:
        """Halve the size."""
        self._failures[self.now] += 1
        self._successes = 0
        self.now = max(1, self.now // 2)

    def succeeded(self) -> None:
        """Count a batch, and double the size when the larger one has waited for long enough."""
        self._successes += 1
        larger = min(2 * self.now, self.largest)
        # A size that never failed has not been tried: 3 is halved to 1, and 2 comes before 3.
        wait = FIRST_WAIT * 2 ** max(0, self._failures[larger] - 1)
        if larger > self.now and self._successes >= wait:
            self.now, self._successes = larger, 0
