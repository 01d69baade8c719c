"""Wake-ups that a thread of its own sends: nothing told is left out, and nobody waits for a Redis that is away."""

import redis
from fluoro_jobs.ids import new_id
from fluoro_jobs.testing.rig import until
from fluoro_jobs.wakeups import EVENTS_CHANNEL, BackgroundPublisher
from fluoro_local.servers import ValkeyServer


def test_every_job_is_told_of_also_the_last_one_before_the_end(redis_url: str) -> None:
    jobs = [new_id() for _ in range(500)]
    with redis.Redis.from_url(redis_url) as client, client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe(EVENTS_CHANNEL)
        heard.get_message(timeout=5)  # the confirmation
        publisher = BackgroundPublisher(redis_url)
        for job in jobs:
            publisher.events(job)
            publisher.events(job)
        publisher.close()
        missing = {job.bytes for job in jobs}

        def all_heard() -> bool:
            while missing and (message := heard.get_message(timeout=0.1)) is not None:
                missing.discard(message["data"])
            return not missing

        until(all_heard, 10, "news of every job")


def test_it_goes_on_once_redis_is_back(redis_url: str, valkey: ValkeyServer) -> None:
    publisher = BackgroundPublisher(redis_url)
    valkey.kill()
    publisher.events(new_id())
    valkey.start()
    job = new_id()
    with redis.Redis.from_url(redis_url) as client, client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe(EVENTS_CHANNEL)

        def is_heard() -> bool:
            publisher.events(job)
            message = heard.get_message(timeout=0.1)
            return message is not None and message["data"] == job.bytes

        until(is_heard, 10, "news of the job")
    publisher.close()
