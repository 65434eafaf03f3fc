"""Tables of a simulated grocery: households that buy what they bought before, in baskets of one moment.

Categories are bought by taste, products of a category by popularity, and some follow the category before.
"""

import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

FILES: Final = ("sales.csv", "products.csv")
_START_S: Final = 1_546_300_800
_DAY_S: Final = 86_400
_AGAIN: Final = 0.45  # P(a product is one of the household's newest)
_FOLLOWS: Final = 0.15  # P(another one is of a category that goes with the one before)
_OWN: Final = 300  # newest products of a household


class BasketWorld:
    """``households`` that buy ``products`` of ``categories`` for ``days``, about once in four days."""

    def __init__(
        self, seed: int = 0, households: int = 600, products: int = 10_000, days: int = 90,
        categories: int = 150,
    ) -> None:  # fmt: skip
        self._draws = np.random.default_rng(seed)
        draws = self._draws
        self._households, self._days, self._categories = households, days, categories
        self._shares = _falling(categories, 0.8)
        self.category = draws.choice(categories, products, p=self._shares)
        self.category[:categories] = np.arange(categories)  # none is empty
        popularity = np.exp(draws.normal(0, 1.9, products))
        self._products = [np.flatnonzero(self.category == c) for c in range(categories)]
        self._wanted = [popularity[own] / popularity[own].sum() for own in self._products]
        self.department = draws.integers(0, 20, categories)[self.category]
        self.brand = draws.choice(400, products, p=_falling(400, 0.9))
        self._with = draws.integers(0, categories, (categories, 4))

    def write(self, folder: Path) -> None:
        """Writes ``FILES``: rows of sales in the order of time, and of products."""
        sales = sorted(row for h in range(self._households) for row in self._sales_of(h))
        baskets: dict[tuple[int, int], int] = {}
        with (folder / "sales.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["household_id", "basket_id", "product_id", "transaction_timestamp"])
            for second, household, product in sales:
                basket = baskets.setdefault((second, household), len(baskets) + 1)
                time = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%d %H:%M:%S")
                table.writerow([f"h{household}", basket, f"p{product}", time])
        with (folder / "products.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["product_id", "department", "brand", "product_category"])
            columns = zip(self.department, self.brand, self.category, strict=True)
            table.writerows([f"p{n}", f"d{d}", f"b{b}", f"c{c}"] for n, (d, b, c) in enumerate(columns))

    def _sales_of(self, household: int) -> list[tuple[int, int, int]]:
        """Times in seconds, the household, and products."""
        draws = self._draws
        kinds = min(int(draws.integers(15, 60)), self._categories // 2)
        liked = draws.choice(self._categories, kinds, replace=False, p=self._shares)
        tastes = 0.1 * self._shares
        tastes[liked] += draws.dirichlet(np.full(len(liked), 0.7))
        tastes /= tastes.sum()
        pause = 2 / draws.gamma(2, 0.25)
        hour, day = draws.integers(8, 21), draws.exponential(pause)
        own: list[int] = []
        rows = []
        while day < self._days:
            basket = self._basket(tastes, own)
            at = (hour + draws.normal(0, 2)) % 24 * 3_600
            second = (_START_S + int(day) * _DAY_S + int(at)) // 60 * 60
            own = (own + basket)[-_OWN:]
            rows += [(second, household, product) for product in basket]
            day += draws.exponential(pause)
        return rows

    def _basket(self, tastes: NDArray[np.float64], own: list[int]) -> list[int]:
        draws, basket = self._draws, dict[int, None]()
        last = -1
        for _ in range(1 + draws.poisson(draws.gamma(2, 3.5))):
            again, follows = draws.random(2)
            if own and again < _AGAIN:
                product = own[draws.integers(len(own))]
            else:
                if last >= 0 and follows < _FOLLOWS:
                    category = self._with[last, draws.integers(4)]
                else:
                    category = draws.choice(self._categories, p=tastes)
                product = int(draws.choice(self._products[category], p=self._wanted[category]))
            if product not in basket:
                basket[product] = None
                last = int(self.category[product])
        return list(basket)


def _falling(size: int, power: float) -> NDArray[np.float64]:
    """Shares that fall with the rank's power."""
    shares = 1 / np.arange(1, size + 1) ** power
    return np.asarray(shares / shares.sum())
