"""A limit on products and on time, for a whole analysis or for a part of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import attrs

from sdkeras.errors import BudgetError

# Part of what verification leaves of a limited budget that is kept for the sharpness dimension and what follows it.
KEPT = 0.5
PRODUCTS, TIME = "the limit on products", "the time limit"


@attrs.frozen
class Budget:
    """Hessian-vector products and seconds that may still be spent.

    Attributes:
        spent: Counts the products made so far, for whatever purpose.
        most: Count at which to stop, or None.
        deadline: `time.monotonic()` at which to stop, or None.
    """

    spent: Callable[[], int]
    most: int | None = None
    deadline: float | None = None

    @property
    def is_limited(self) -> bool:
        return self.most is not None or self.deadline is not None

    @property
    def left(self) -> int | None:
        """Products left, at least 0; None without a limit."""
        return None if self.most is None else max(0, self.most - self.spent())

    def over(self, products: int = 0) -> str:
        """Which limit has no room for this many more products; "" where both have."""
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return TIME
        return PRODUCTS if self.most is not None and self.spent() + products > self.most else ""

    def require(self, products: int = 0) -> None:
        """Checks that there is room for this many more products.

        Raises:
            BudgetError: There is not.
        """
        reason = self.over(products)
        if reason:
            raise BudgetError(reason)

    def part(self, share: float) -> Budget:
        """A budget of this share of what is left now."""
        now = time.monotonic()
        return Budget(
            self.spent,
            None if self.left is None else self.spent() + int(share * self.left),
            None if self.deadline is None else now + share * max(0.0, self.deadline - now),
        )

    def beyond(self) -> tuple[int, float]:
        """Products and seconds spent beyond the limits, (0, 0) within them."""
        products = 0 if self.most is None else max(0, self.spent() - self.most)
        seconds = 0.0 if self.deadline is None else max(0.0, time.monotonic() - self.deadline)
        return products, seconds
