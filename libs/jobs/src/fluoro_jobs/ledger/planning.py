"""Finds the inputs of a step that works on what earlier steps left.

Runs in the transaction that unblocks the step, and so sees what that transaction leaves. PostgreSQL
does all of it: what a large step left need not go through this process, which holds the job's row.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.graph import JobGraph
from fluoro_jobs.ledger.records import MAX_INPUTS, MAX_PARTS, MAX_PARTS_TOGETHER, Step

ALL: Final = "all"
"""Key of the one input that a group makes of keys that have no parent."""

_COUNT: Final = "SELECT count(*) FROM step_inputs WHERE job_id = %(job)s AND step = %(step)s"

# All that has the same key, or the same parent, is one input; they are numbered as they come. What
# comes from several of the job's inputs belongs to none of them.
# Nothing is kept of more than is allowed. One part more is enough to know that there are too many.
# Without OFFSET 0, PostgreSQL may join them with all blobs there are.
_PLAN: Final = f"""
WITH found AS MATERIALIZED (
  SELECT row_number() OVER (ORDER BY l.place, l.shard, l.position) AS nth, l.input,
    CASE WHEN l.grouped THEN coalesce(nullif(regexp_replace(l.key, '/?[^/]*$', ''), ''), '{ALL}')
      ELSE l.key END AS key,
    jsonb_build_array(l.blob_id, l.role, l.name, b.media_type, l.source) AS part
  FROM (
    SELECT s.source, s.role, s.grouped, s.place, a.*
    FROM unnest(%(sources)s::int2[], %(roles)s::text[], %(grouped)s::bool[])
      WITH ORDINALITY s(source, role, grouped, place)
    CROSS JOIN LATERAL (
      SELECT key, input, blob_id, name, shard::int, position FROM artifacts
        WHERE job_id = %(job)s AND step = s.source AND role = s.role AND key <> ''
      UNION ALL
      SELECT number::text, number, blob_id, '', 0, number FROM job_inputs
        WHERE s.source IS NULL AND job_id = %(job)s
    ) a LIMIT (SELECT %(most)s + 1)
  ) l CROSS JOIN LATERAL (SELECT media_type FROM blobs WHERE id = l.blob_id OFFSET 0) b
), gathered AS MATERIALIZED (
  SELECT key, min(nth) AS first, jsonb_agg(part ORDER BY nth) AS parts,
    CASE WHEN count(input) = count(*) AND min(input) = max(input) THEN min(input) END AS input
  FROM found GROUP BY key
), counted AS MATERIALIZED (
  SELECT (SELECT count(*) FROM found) AS parts, (SELECT count(*) FROM gathered) AS inputs
), kept AS (
  INSERT INTO step_inputs (job_id, step, number, key, input, parts)
  SELECT %(job)s, %(step)s, row_number() OVER (ORDER BY g.first) - 1, g.key, g.input, g.parts
  FROM gathered g, counted c WHERE c.parts <= %(most)s AND c.inputs <= {MAX_INPUTS}
)
SELECT parts, inputs FROM counted
"""


class Part(NamedTuple):
    """A blob of an input. name: the artifact's, empty for the job's inputs. step: that left it."""

    blob: UUID
    role: str
    name: str
    media_type: str
    step: int | None


class StepInput(NamedTuple):
    """One input of a step: all blobs of one key. input: number of the job's input it comes from."""

    number: int
    key: str
    input: int | None
    parts: Sequence[Part]


class Planner:
    """Finds the inputs of the steps that one transaction unblocks, and keeps them.

    Steps with the same sources share one list, so that any number of them costs what one does.
    """

    def __init__(self, connection: LedgerConnection, graph: JobGraph) -> None:
        """The transaction holds the job's row."""
        self._connection = connection
        self._graph = graph
        self._left = MAX_PARTS_TOGETHER
        self._known: dict[int, tuple[int, str]] = {}

    def plan(self, step: Step) -> None:
        """Gives a step its tasks, or fails it if it has no inputs or too many."""
        shared = self._graph.inputs_of(step)
        if shared not in self._known:
            self._known[shared] = self._resolve(shared, step)
        self._graph.plan(step, *self._known[shared])

    def _resolve(self, shared: int, step: Step) -> tuple[int, str]:
        """How many inputs it has, and why it cannot have them if there are too many."""
        parameters = {"job": self._graph.id, "step": shared}
        # Another step with these sources may have been planned in an earlier transaction.
        # A step with the same sources in this transaction is in `_known`; this finds those of
        # earlier ones.
        (there,) = self._connection.execute(_COUNT, parameters).fetchall()
        if there[0]:
            return there[0], ""
        sources = step.sources or ()
        # Other steps of the transaction may have left less than a step's own limit.
        most = min(MAX_PARTS, self._left)
        row = self._connection.execute(
            _PLAN,
            {
                **parameters,
                "sources": [source.step for source in sources],
                "roles": [source.role for source in sources],
                "grouped": [source.group for source in sources],
                "most": most,
            },
        ).fetchone()
        assert row is not None
        parts, inputs = row
        # The statement counted first and kept nothing of it.
        if inputs > MAX_INPUTS or parts > MAX_PARTS:
            return inputs, (
                f"It has more than {MAX_INPUTS} inputs, or {MAX_PARTS} files. Split the job."
            )
        if parts > most:
            return inputs, (
                f"The steps that may begin together have more than {MAX_PARTS_TOGETHER} files. "
                "Let some of them come after others, or split the job."
            )
        # What was kept counts towards the limit of all steps that begin in this transaction.
        self._left -= parts
        return inputs, ""
