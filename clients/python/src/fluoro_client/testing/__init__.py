"""A Fluoro for tests: `FakeGateway` serves the API on a loopback port of this process.

It keeps everything in memory, needs no PostgreSQL, Redis or workers, starts within milliseconds,
and answers as a gateway does. Jobs run the moment they are submitted. The test says what their
steps come to, and which calls break.

It differs from Fluoro where a test would have to wait or to know a worker: `schedule_time`,
`expire_time`, back-off and limits of size are kept but do nothing, tasks name no queue, and a step
has the items, artifacts and result that the test gives it, or none.
"""

from fluoro_client.testing.faults import Fault
from fluoro_client.testing.gateway import FakeGateway
from fluoro_client.testing.state import Call
from fluoro_client.testing.story import File, Outcome

__all__ = ["Call", "FakeGateway", "Fault", "File", "Outcome"]
