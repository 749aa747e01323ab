"""Bytes under keys in Redis or Valkey, which several agents and machines may share."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import anyio
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

T = TypeVar("T")

PREFIX = "{xnai-answers}:"  # the braces keep the keys of a script together in a cluster

_PAUSE = 10.0  # seconds for which a server that gave no answer is not asked again

# All live equally long, so that the oldest are those that Redis has dropped by itself. What a value weighs is
# told by its member of the sorted set: length, colon, key.
_PUT = """
local now = redis.call('TIME')
local at = now[1] * 1000 + math.floor(now[2] / 1000)
local function forget(member)
    redis.call('ZREM', KEYS[2], member)
    redis.call('DECRBY', KEYS[3], string.match(member, '^%d+'))
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', at - ARGV[2])) do forget(member) end
local old = redis.call('STRLEN', KEYS[1])
if old > 0 then
    local member = old .. ':' .. KEYS[1]
    if redis.call('ZSCORE', KEYS[2], member) then forget(member) end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZADD', KEYS[2], at, #ARGV[1] .. ':' .. KEYS[1])
local total = redis.call('INCRBY', KEYS[3], #ARGV[1])
while total > tonumber(ARGV[3]) do
    local oldest = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
    if not oldest then
        redis.call('SET', KEYS[3], 0)
        break
    end
    redis.call('DEL', string.sub(oldest, string.find(oldest, ':') + 1))
    forget(oldest)
    total = tonumber(redis.call('GET', KEYS[3]))
end
for index = 2, 3 do redis.call('PEXPIRE', KEYS[index], ARGV[2]) end
"""

_log = logging.getLogger(__name__)


class RedisStore:
    """At most `size` bytes of values, the oldest go first; each lives `ttl` seconds.

    While the server does not answer in time, everything is a miss; that is logged once.
    """

    def __init__(
        self, client: Any, *, ttl: float, size: int, timeout: float, clock: Callable[[], float]
    ) -> None:
        self._client, self._ttl, self._size, self._timeout, self._clock = client, ttl, size, timeout, clock
        self._put = client.register_script(_PUT)
        self._away_until: float | None = None

    async def get(self, key: str) -> bytes | None:
        return await self._ask(lambda: cast("Awaitable[bytes | None]", self._client.get(PREFIX + key)))

    async def put(self, key: str, value: bytes) -> None:
        if len(value) <= self._size:
            keys = [PREFIX + key, f"{PREFIX}ages", f"{PREFIX}total"]
            await self._ask(lambda: self._put(keys=keys, args=[value, int(self._ttl * 1000), self._size]))

    async def _ask(self, function: Callable[[], Awaitable[T]]) -> T | None:
        if self._away_until is not None and self._clock() < self._away_until:
            return None
        try:
            with anyio.fail_after(self._timeout):
                answer = await function()
        except (RedisError, OSError) as error:
            if self._away_until is None:
                _log.warning("no cache of answers: redis does not answer", extra={"reason": repr(error)})
            self._away_until = self._clock() + _PAUSE
            return None
        if self._away_until is not None:
            _log.info("redis answers again")
            self._away_until = None
        return answer


@asynccontextmanager
async def open_redis_store(
    url: str, *, ttl: float, size: int, timeout: float = 0.5, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[RedisStore]:
    """Opens `redis://`, `rediss://` or `unix://`, whether or not a server is there now.

    Raises ValueError for any other address.
    """
    client = redis.asyncio.Redis.from_url(
        url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
    )
    try:
        yield RedisStore(client, ttl=ttl, size=size, timeout=timeout, clock=clock)
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(timeout):
            await client.aclose()
