"""Token buckets of owners: decided here at once, and settled between gateways behind the calls.

No call waits for Redis. Each gateway charges its own copy of an owner's bucket. Ten times a second
it tells Redis what was spent since, in one call of a script for all owners together, and takes over
what Redis says is left, which counts what other gateways let through. While Redis is away or slow,
the copies go on alone.

What several gateways let through in the tenth of a second in which they do not know of each other
is a debt of the bucket, so that the rate holds in the long run.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import structlog
from fluoro_jobs.redis_url import RedisServer
from fluoro_telemetry import metrics
from redis.exceptions import RedisError

log = structlog.get_logger(__name__)

BURST_SECONDS: Final = 5
"""What a bucket holds: as much as the rate gives in this time, and one at least."""
SETTLE_SECONDS: Final = 0.1
"""How often a gateway reports to Redis what was spent."""
DEADLINE_SECONDS: Final = 0.5
"""How long Redis may take to answer before it counts as away."""
PROBE_SECONDS: Final = 2
"""How long it may take to connect and to give a sign of life after that."""
AWAY_SECONDS: Final = 1
"""Pause until it is asked again."""
SETTLED_AT_ONCE: Final = 200
"""Buckets in one call of the script, which takes Redis less than a millisecond."""
MAX_BUCKETS: Final = 50_000
"""Buckets that a gateway keeps, some 300 bytes each; the one unused for longest goes first."""

SCRIPT: Final = """
local t = redis.call('TIME')
local now = t[1] + t[2] / 1000000
local left = {}
for i, key in ipairs(KEYS) do
  local rate, size, spent = tonumber(ARGV[3*i-2]), tonumber(ARGV[3*i-1]), tonumber(ARGV[3*i])
  local old = redis.call('HMGET', key, 'level', 'time')
  local level = size
  if old[1] and old[2] then
    -- A clock that was set back gives nothing, one that was set forward a full bucket at most.
    level = math.min(size, tonumber(old[1]) + math.max(0, now - tonumber(old[2])) * rate)
  end
  level = level - spent
  redis.call('HSET', key, 'level', string.format('%.3f', level), 'time',
    string.format('%.6f', now))
  redis.call('EXPIRE', key, math.ceil((size - level) / rate) + 10)
  left[i] = string.format('%.3f', level)
end
return left
"""
"""KEYS: buckets. ARGV: rate, size and what was spent, of each. What is left in each, as text."""

Name = tuple[str, str]
"""What is limited, and the owner."""


class Bucket:
    """A gateway's copy of an owner's bucket. Times are of time.monotonic."""

    __slots__ = ("last", "level", "rate", "size", "spent", "time")

    def __init__(self, rate: float, now: float) -> None:
        """rate: what comes in, a second."""
        self.rate, self.size = rate, max(1.0, rate * BURST_SECONDS)
        self.level, self.time, self.spent, self.last = self.size, now, 0.0, 0.0

    def take(self, cost: float, now: float) -> float:
        """Takes that much. 0, or the seconds after which it may be there: then nothing is taken.

        What costs more than the bucket holds needs a full one, and leaves it in debt.
        """
        self.level = min(self.size, self.level + (now - self.time) * self.rate)
        self.time = now
        # A bucket never holds more than its size, so a larger cost needs only a full one.
        needed = min(cost, self.size)
        if self.level < needed:
            return (needed - self.level) / self.rate
        self.level -= cost
        self.spent += cost
        self.last = cost
        return 0

    def settle(self, left: float, sent: float, now: float) -> None:
        """Takes over what Redis says. sent: what was reported to it."""
        # What was spent since it was sent is not in Redis's figure yet.
        self.spent -= sent
        self.level, self.time = min(self.size, left - self.spent), now


class Buckets:
    """All buckets of a gateway."""

    def __init__(self, redis_url: str) -> None:
        """ValueError for a URL of an unknown kind."""
        self._redis = RedisServer.from_url(redis_url).aio_client()
        self._script = self._redis.register_script(SCRIPT)
        self._buckets: OrderedDict[Name, Bucket] = OrderedDict()
        self._spent: dict[Name, Bucket] = {}
        self._woken = asyncio.Event()
        self._shared = True
        metrics.RATES_SHARED.set(1)

    def take(self, what: str, owner: str, rate: float, cost: float = 1) -> float:
        """0 if the owner may; otherwise the seconds after which it may."""
        now, name = time.monotonic(), (what, owner)
        bucket = self._buckets.get(name)
        # A rate that was changed begins with a full bucket.
        if bucket is None or bucket.rate != rate:
            bucket = self._add(name, Bucket(rate, now))
        else:
            self._buckets.move_to_end(name)
        wait = bucket.take(cost, now)
        if not wait:
            # Kept by name: several calls before the next settling are one message.
            self._spent[name] = bucket
            self._woken.set()
        return wait

    def __len__(self) -> int:
        """How many there are."""
        return len(self._buckets)

    async def run(self) -> None:
        """Settles what is spent with Redis. Never ends."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            shared = await self._settled()
            if shared != self._shared:
                self._shared = shared
                metrics.RATES_SHARED.set(shared)
                log.warning(
                    "rates_shared" if shared else "rates_of_each_gateway_alone",
                    meaning="how fast owners may call is counted over all gateways"
                    if shared
                    else "Redis is away or slow; each gateway lets through what an owner may",
                )
            await asyncio.sleep(SETTLE_SECONDS if shared else AWAY_SECONDS)
            if not shared:
                # Nobody may call again, and the metric is to tell when Redis is back.
                self._woken.set()

    async def close(self) -> None:
        """Closes the connections. Call it after `run` was cancelled."""
        await self._redis.aclose()

    def _add(self, name: Name, bucket: Bucket) -> Bucket:
        self._buckets[name] = bucket
        self._buckets.move_to_end(name)
        if len(self._buckets) > MAX_BUCKETS:
            # The bucket unused for longest goes. It starts full if its owner comes back.
            gone, _ = self._buckets.popitem(last=False)
            self._spent.pop(gone, None)
        return bucket

    async def _settled(self) -> bool:
        """Tells Redis of all that was spent. Whether it answered in time."""
        spent, self._spent = list(self._spent.items()), {}
        if not self._shared and not await self._answers():
            self._spent = dict(spent) | self._spent
            return False
        # In pieces, as a script holds up everything else in Redis.
        for start in range(0, len(spent), SETTLED_AT_ONCE):
            try:
                async with asyncio.timeout(DEADLINE_SECONDS):
                    await self._settle(spent[start : start + SETTLED_AT_ONCE])
            except (RedisError, OSError, TimeoutError, ValueError):
                # Told again with what comes. If Redis took it and only the answer is missing,
                # owners pay for it twice.
                self._spent = dict(spent[start:]) | self._spent
                return False
        return True

    async def _answers(self) -> bool:
        """Whether Redis is back.

        A server that stood still does all that it was sent meanwhile: it must not be the same debt
        again and again.
        """
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                return bool(await self._redis.ping())
        except (RedisError, OSError, TimeoutError):
            return False

    async def _settle(self, spent: Sequence[tuple[Name, Bucket]]) -> None:
        for _, bucket in spent:
            # After an outage it may be far more: that was let through by each gateway alone.
            bucket.spent = min(bucket.spent, max(bucket.size, bucket.last))
        sent = [bucket.spent for _, bucket in spent]
        arguments = [
            number
            for (_, bucket), cost in zip(spent, sent, strict=True)
            for number in (bucket.rate, bucket.size, cost)
        ]
        # Owners are of letters, digits and `_.@-`, so no two names make one key.
        keys = [f"fluoro:rate:{what}:{owner}" for (what, owner), _ in spent]
        left = await self._script(keys=keys, args=arguments)
        now = time.monotonic()
        for (_, bucket), cost, level in zip(spent, sent, left, strict=True):
            bucket.settle(float(level), cost, now)
