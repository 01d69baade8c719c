"""Which models the live workers have: each worker process announces its own.

A hint, some seconds old. Whether a model can be used is decided by the worker that has the task.
"""

import hashlib
from collections.abc import Iterable
from typing import Final, NamedTuple
from uuid import UUID

from fluoro.v1.model_pb2 import Model

from fluoro_jobs.ledger.connection import LedgerConnection, fetch_one

MOST_LISTED: Final = 10_000
"""Most different entries that are read: more than any deployment has, so that memory is bounded."""

_REPORT: Final = """
WITH worker AS (
  SELECT id FROM workers WHERE id = %(worker)s FOR KEY SHARE
), told AS (
  SELECT * FROM unnest(%(names)s::text[], %(versions)s::text[], %(ready)s::bool[],
    %(digests)s::bytea[], %(abouts)s::bytea[], %(cards)s::text[])
    t(name, version, ready, digest, about, card)
), gone AS (
  DELETE FROM models m WHERE m.worker_id = %(worker)s AND NOT EXISTS (
    SELECT FROM told t WHERE t.name = m.name AND t.version = m.version)
), put AS (
  INSERT INTO models (worker_id, name, version, ready, digest, about, card)
  SELECT w.id, t.name, t.version, t.ready, t.digest, t.about, t.card FROM worker w, told t
  ON CONFLICT (worker_id, name, version) DO UPDATE
    SET ready = excluded.ready, digest = excluded.digest, about = excluded.about,
      card = excluded.card
    WHERE models.digest <> excluded.digest
)
SELECT EXISTS (SELECT FROM worker)
"""
# Workers that say the same of a version are one row. What they say is fetched for one of them: it
# may weigh kilobytes, and their number is that of the workers.
_LIVE: Final = """
WITH alike AS (
  SELECT m.name, m.version, m.digest, count(*) AS workers, min(m.worker_id::text)::uuid AS one
  FROM models m JOIN workers w ON w.id = m.worker_id
  WHERE w.expire_time > now() AND (m.name = %(name)s OR %(name)s = '')
  GROUP BY m.name, m.version, m.digest
  ORDER BY m.name, m.version, m.digest LIMIT %(most)s
)
SELECT a.workers, m.about, CASE WHEN %(name)s <> '' THEN m.card ELSE '' END
FROM alike a JOIN models m ON m.worker_id = a.one AND m.name = a.name AND m.version = a.version
"""
READY: Final = """
SELECT EXISTS (
  SELECT FROM models m JOIN workers w ON w.id = m.worker_id
  WHERE m.name = %(name)s AND m.version = coalesce(nullif(%(version)s, ''), m.version)
    AND m.ready AND w.expire_time > now() AND w.slots > 0
    AND (w.id <> %(but)s OR %(but)s IS NULL)
)
"""
"""Whether a live worker serves a model; `serves` has its parameters."""


class Said(NamedTuple):
    """What a number of live workers say of a version, in the same words."""

    workers: int
    about: Model


def announce(connection: LedgerConnection, worker: UUID, models: Iterable[Model]) -> bool:
    """Makes these the models of a worker process.

    models: each with one deployment, its own. False if the ledger does not list the worker (yet).
    """
    rows = [_row(model) for model in models]
    columns = ("names", "versions", "ready", "digests", "abouts", "cards")
    given = {name: [row[place] for row in rows] for place, name in enumerate(columns)}
    return fetch_one(connection, _REPORT, {"worker": worker, **given}) == (True,)


def live_models(connection: LedgerConnection, name: str = "") -> list[Said]:
    """What live workers say of all models, or of the versions of one, with its cards."""
    given = {"name": name, "most": MOST_LISTED}
    said = []
    for workers, data, card in connection.execute(_LIVE, given).fetchall():
        about = Model.FromString(data)
        about.card = card
        said.append(Said(workers, about))
    return said


def is_served_elsewhere(
    connection: LedgerConnection, worker: UUID, name: str, version: str
) -> bool:
    """Whether another live worker serves the model. version: empty for any."""
    return fetch_one(connection, READY, serves(name, version, worker)) == (True,)


def serves(name: str, version: str, but: UUID | None = None) -> dict[str, object]:
    """Parameters of READY. version: empty for any. but: a worker that does not count."""
    return {"name": name, "version": version, "but": but}


def _row(model: Model) -> tuple[str, str, bool, bytes, bytes, str]:
    about = Model()
    about.CopyFrom(model)
    about.ClearField("card")
    _, name, _, version = model.name.split("/")
    data = about.SerializeToString(deterministic=True)
    digest = hashlib.sha256(data + b"\0" + model.card.encode()).digest()
    # PostgreSQL keeps no text with U+0000, which a card in UTF-16 is full of.
    card = model.card.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return name, version, model.state == Model.STATE_READY, digest, data, card
