"""Asks once: what is kept is not asked again, what is asked is kept before it is used, and paid for within the cap."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from ..errors import DataError
from .endpoint import Completion, Endpoint, Lost, Rejected
from .ledger import Ledger
from .replies import Text, Unusable
from .request import Request
from .settings import Settings
from .spend import Budget, Reservation
from .summary import Summary

LOG = logging.getLogger(__name__)
T = TypeVar("T")


class NotAsked(Exception):
    """Nothing was sent: `planned` in a dry run, or a key of `summary.NOT_ASKED`."""


class Asker:
    """`endpoint` is None in a dry run."""

    def __init__(self, settings: Settings, ledger: Ledger, endpoint: Endpoint | None, summary: Summary) -> None:
        self._settings, self._ledger, self._endpoint, self._summary = settings, ledger, endpoint, summary
        self._budget = Budget(settings, ledger.spent + ledger.uncertain)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._asked: set[str] = set()
        self._structured = settings.structured
        self._failures = 0
        self._stopped = ""

    async def ask(self, request: Request, parse: Callable[[Text], T]) -> tuple[T, str]:
        """What `parse` makes of the reply, and when the reply was made.

        Raises Unusable (of `parse`), NotAsked, Lost, Rejected; DataError if the endpoint takes no request at all.
        """
        key = request.key(self._settings)
        lock = self._locks.setdefault(key, asyncio.Lock())  # equal rows side by side: the second finds the reply
        async with lock:
            if kept := self._ledger.find(key):
                try:
                    found = parse(kept["reply"])
                    self._summary.cached += key not in self._asked
                    return found, kept["created"]
                except Unusable:
                    if not self._settings.retry_failed or key in self._asked:
                        self._summary.cached += key not in self._asked
                        raise
            completion = await self._paid(request, key)
        return parse(completion.reply), completion.created

    def plan(self, request: Request) -> None:
        """Count a call that follows from one that is not made, in a dry run."""
        self._summary.calls += 1
        self._summary.tokens_in += request.tokens_in
        self._summary.tokens_out += self._settings.max_tokens
        self._summary.cost += self._settings.cost(request.tokens_in, self._settings.max_tokens)

    async def _paid(self, request: Request, key: str) -> Completion:
        if self._endpoint is None:
            if key not in self._asked:
                self._asked.add(key)
                self.plan(request)
            raise NotAsked("planned")
        async with self._budget.reserve(request.tokens_in) as reservation:
            if reservation is None:
                self._stop("spend cap", f"the next call could take the spend above {self._settings.max_spend}")
            if self._stopped or reservation is None:
                raise NotAsked(self._stopped)
            try:
                completion, once = await self._sent(self._endpoint, request, key)
            except DataError:
                self._stop("endpoint refused", "the endpoint takes no requests")
                raise
            except (Lost, Rejected) as error:
                self._failed(error, key, reservation)
                raise
            self._failures = 0
            self._record(request, key, once, completion, reservation)
        return completion

    async def _sent(self, endpoint: Endpoint, request: Request, key: str) -> tuple[Completion, str]:
        """With our schema, and if that is refused without. And the Idempotency-Key it was sent with."""
        structured, once = self._structured, self._once(key, self._structured)
        try:
            return await endpoint.complete(request, structured=structured, idempotency_key=once), once
        except Rejected as error:
            if not structured:
                raise
            once = self._once(key, False)
            completion = await endpoint.complete(request, structured=False, idempotency_key=once)
            if self._structured:
                self._structured = False
                LOG.warning("the endpoint does not take response_format (%s); asking without it", error)
            return completion, once

    def _once(self, key: str, structured: bool) -> str:
        """The same for every attempt at the same request, also after a kill; another one once a reply is kept."""
        limit = f"{self._settings.limit_field} {self._settings.max_tokens}"
        return hashlib.sha256(f"{key} {self._ledger.attempts(key)} {structured} {limit}".encode()).hexdigest()

    def _record(self, request: Request, key: str, once: str, completion: Completion, reservation: Reservation) -> None:
        usage = completion.usage
        reservation.used = reservation.most if usage is None else self._settings.cost(*usage)
        self._ledger.record(
            {
                "key": key, "once": once, "about": request.about, "prompt": request.prompt,
                "model": self._settings.model,
                "images": [picture.identity for picture in request.pictures], "created": completion.created,
                "reply": vars(completion.reply), "usage": usage, "cost": reservation.used, "uncertain": usage is None,
                "retries": completion.retries, "raw": completion.raw,
            }
        )  # fmt: skip
        self._asked.add(key)
        self._summary.calls += 1
        self._summary.retries += completion.retries
        self._summary.cost += reservation.used
        if usage is not None:
            self._budget.learn(request.tokens_in, usage[0])
            self._summary.tokens_in += usage[0]
            self._summary.tokens_out += usage[1]

    def _failed(self, error: Lost | Rejected, key: str, reservation: Reservation) -> None:
        self._summary.failures += 1
        self._failures += 1
        if isinstance(error, Lost) and error.paid and reservation.most:
            reservation.used = reservation.most
            self._ledger.record({"key": key, "failure": str(error), "cost": reservation.used, "uncertain": True})
        if self._failures >= self._settings.max_failures:
            self._stop("endpoint down", f"{self._failures} calls in a row without a reply, the last one: {error}")

    def _stop(self, why: str, message: str) -> None:
        if not self._stopped:
            self._stopped = why
            self._summary.stopped = f"{why}: {message}"
            LOG.warning("stopped asking: %s", message)
