"""In which order data is visited: a fresh shuffle each pass, told by two numbers."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch


class Shuffler:
    """Endless passes over `count` items, each in a shuffle of its own that only the seed and the pass decide."""

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise ValueError("there is nothing to visit")
        self._count = count
        self._seed = seed
        self._epoch = 0
        self._cursor = 0
        self._order = self._shuffle()

    def take(self, n: int) -> list[int]:
        """The next `n` positions; a pass that ends on the way is followed by the next."""
        taken: list[int] = []
        while len(taken) < n:
            if self._cursor == self._count:
                self._epoch, self._cursor = self._epoch + 1, 0
                self._order = self._shuffle()
            part = self._order[self._cursor : self._cursor + n - len(taken)]
            taken += part
            self._cursor += len(part)
        return taken

    def state_dict(self) -> dict[str, int]:
        """The pass and the place in it."""
        return {"epoch": self._epoch, "cursor": self._cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._epoch, self._cursor = state["epoch"], state["cursor"]
        self._order = self._shuffle()

    def _shuffle(self) -> list[int]:
        generator = torch.Generator().manual_seed(derived_seed(self._seed, "epoch", self._epoch))
        return [int(i) for i in torch.randperm(self._count, generator=generator)]


def derived_seed(*parts: int | str) -> int:
    """A seed of 63 bits that these parts alone decide: distinct streams that need no state to resume."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
