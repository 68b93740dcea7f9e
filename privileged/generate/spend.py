"""What may be spent. The worst case of a call is reserved before it, so that calls side by side cannot jump the cap."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .settings import Settings

IMAGE_UNIT = 32
"""px of an image for one token each way: Qwen3-VL's arithmetic. Other families differ by up to a few times."""


class Budget:
    """`spent` is what came before."""

    def __init__(self, settings: Settings, spent: float) -> None:
        self._settings, self._spent, self._reserved = settings, spent, 0.0
        self._changed = asyncio.Condition()
        self._factor = 1.0
        self.exhausted = False

    @asynccontextmanager
    async def reserve(self, tokens_in: int) -> AsyncIterator[Reservation | None]:
        """Around a call of at most `tokens_in` tokens: None if it could take the spend above the cap.

        Waits while calls under way may turn out cheaper than their worst case. After the first None there is no
        other answer: what is left would be spent on whatever row happens to be small.
        """
        cost = self._settings.cost(tokens_in * self._factor, self._settings.max_tokens)
        cap = math.inf if self._settings.max_spend is None else self._settings.max_spend
        async with self._changed:
            await self._changed.wait_for(
                lambda: self.exhausted or self._spent + self._reserved + cost <= cap or not self._reserved
            )
            if self.exhausted or self._spent + cost > cap:
                self.exhausted = True
                self._changed.notify_all()
                admitted = False
            else:
                self._reserved += cost
                admitted = True
        if not admitted:
            yield None
            return
        reservation = Reservation(cost)
        try:
            yield reservation
        finally:
            async with self._changed:
                self._reserved -= cost
                if self._reserved < 1e-12:  # rounding; with nothing under way it is nothing
                    self._reserved = 0.0
                self._spent += reservation.used
                self._changed.notify_all()

    def learn(self, estimated: int, reported: int) -> None:
        """Endpoints that count more tokens than we do raise the worst case of the calls to come."""
        self._factor = max(self._factor, reported / max(estimated, 1))


class Reservation:
    """`most` is reserved; `used` becomes what the call did cost. Stays at `most` if that never is known."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.used = 0.0


def image_tokens(size: tuple[int, int]) -> int:
    """An estimate: one token for 32 x 32 px, and two around."""
    return math.ceil(size[0] / IMAGE_UNIT) * math.ceil(size[1] / IMAGE_UNIT) + 2


def text_tokens(text: str) -> int:
    """At most: byte-level tokenizers never need more tokens than bytes."""
    return len(text.encode("utf-8", "replace"))
