"""Open tasks apart from ended ones; counters in steps; tables of inputs and owners.

Releases from before it cannot work on this schema: stop them first.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

_JOBS = """
ALTER TABLE jobs ADD COLUMN input_count int;
CREATE TABLE job_inputs (
  job_id uuid NOT NULL, number int NOT NULL, blob_id uuid NOT NULL,
  CONSTRAINT job_inputs_pkey PRIMARY KEY (job_id, number)
);
INSERT INTO job_inputs SELECT j.id, i.number - 1, i.blob
  FROM jobs j, unnest(j.inputs) WITH ORDINALITY i(blob, number);
ALTER TABLE job_inputs ADD CONSTRAINT job_inputs_job_id_fkey
  FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE;
CREATE INDEX job_inputs_blob_id_idx ON job_inputs (blob_id);
UPDATE jobs SET input_count = cardinality(inputs);
ALTER TABLE jobs ALTER COLUMN input_count SET NOT NULL, DROP COLUMN inputs;
CREATE INDEX jobs_open_idx ON jobs (owner, id) WHERE end_time IS NULL;
"""

# A step that waits has no tasks. What it had before a retry stays on record.
_BLOCKED = """
DELETE FROM tasks t WHERE state = 'BLOCKED' AND NOT EXISTS (SELECT FROM attempts a
  WHERE a.task_id = t.id);
ALTER TABLE tasks DROP CONSTRAINT tasks_state_check;
UPDATE tasks SET state = 'CANCELLED', first_input = 0, input_count = 0, item_counts = NULL,
  result = NULL WHERE state = 'BLOCKED';
"""

_STEPS = """
ALTER TABLE steps ADD COLUMN queue text, ADD COLUMN task_name text, ADD COLUMN sources jsonb,
  ADD COLUMN inputs_per_task int,
  ADD COLUMN allow_identifiable bool NOT NULL DEFAULT false,
    ADD COLUMN input_count int NOT NULL DEFAULT 0, ADD COLUMN task_count int NOT NULL DEFAULT 0,
  ADD COLUMN ended_tasks int NOT NULL DEFAULT 0, ADD COLUMN failed_tasks int NOT NULL DEFAULT 0,
  ADD COLUMN lost_inputs int NOT NULL DEFAULT 0, ADD COLUMN items_total int NOT NULL DEFAULT 0,
  ADD COLUMN items_succeeded int NOT NULL DEFAULT 0,
    ADD COLUMN items_skipped int NOT NULL DEFAULT 0,
  ADD COLUMN items_failed int NOT NULL DEFAULT 0;
UPDATE steps s SET queue = q.queue, task_name = q.task_name
  FROM (VALUES ('inspect_dicom', 'dicom', 'dicom.inspect'),
  ('render_dicom', 'dicom', 'dicom.render'),
  ('analyze_images', 'ml', 'ml.analyze'),
    ('export_report', 'export', 'export.report')) q(operation, queue, task_name)
WHERE q.operation = s.operation;
UPDATE steps s SET queue = t.queue, task_name = t.task_name FROM tasks t
  WHERE t.job_id = s.job_id AND t.step = s.ordinal;
UPDATE steps SET inputs_per_task = 0;
UPDATE steps s SET input_count = c.inputs, task_count = c.tasks, ended_tasks = c.ended,
  failed_tasks = c.failed, lost_inputs = c.lost,
  items_total = c.total, items_succeeded = c.succeeded, items_skipped = c.skipped,
    items_failed = c.items_failed
FROM (
  SELECT job_id, step, sum(input_count) AS inputs, count(*) AS tasks,
    count(*) FILTER (WHERE state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')) AS ended,
    count(*) FILTER (WHERE state = 'FAILED') AS failed,
    coalesce(sum(input_count) FILTER (WHERE state = 'FAILED'), 0) AS lost,
    coalesce(sum(item_counts[1]), 0) AS total, coalesce(sum(item_counts[2]), 0) AS succeeded,
    coalesce(sum(item_counts[3]), 0) AS skipped, coalesce(sum(item_counts[4]), 0) AS items_failed
  FROM tasks WHERE input_count > 0 GROUP BY job_id, step
) c WHERE c.job_id = s.job_id AND c.step = s.ordinal;
"""

# A step that fans out and waits has lost the size of its tasks with them.
_SIZES = """
CREATE TEMPORARY TABLE sizes ON COMMIT DROP AS
SELECT t.job_id, t.step, max(t.input_count) AS most FROM tasks t
  JOIN steps s ON s.job_id = t.job_id AND s.ordinal = t.step
WHERE s.fans_out GROUP BY t.job_id, t.step;
"""
_STEPS_DONE = """
UPDATE steps s SET inputs_per_task = z.most FROM sizes z
  WHERE z.job_id = s.job_id AND z.step = s.ordinal;
ALTER TABLE steps ALTER COLUMN queue SET NOT NULL, ALTER COLUMN task_name
  SET NOT NULL, ALTER COLUMN inputs_per_task SET NOT NULL,
  DROP COLUMN fans_out;
CREATE TABLE step_inputs (
  job_id uuid NOT NULL, step smallint NOT NULL, number int NOT NULL, key text NOT NULL, input int,
    parts jsonb NOT NULL,
  CONSTRAINT step_inputs_pkey PRIMARY KEY (job_id, step, number),
  CONSTRAINT step_inputs_job_id_step_fkey FOREIGN KEY (job_id, step) REFERENCES steps (job_id,
    ordinal) ON DELETE CASCADE
);
"""

_TASKS = """
CREATE TABLE open_tasks (
  task_id uuid NOT NULL, job_id uuid NOT NULL, queue text NOT NULL, owner text NOT NULL,
    task_name text NOT NULL,
  state text NOT NULL, attempt int NOT NULL DEFAULT 0, priority smallint NOT NULL,
  due_time timestamptz NOT NULL, order_time timestamptz NOT NULL, dispatch_order timestamptz,
    queued_time timestamptz,
  worker_id uuid, lease_expire_time timestamptz,
  CONSTRAINT open_tasks_pkey PRIMARY KEY (task_id),
  CONSTRAINT open_tasks_state_check CHECK (state IN ('WAITING', 'READY', 'QUEUED', 'RUNNING')),
  CONSTRAINT open_tasks_ready_check CHECK ((state = 'READY') = (dispatch_order IS NOT NULL)),
  CONSTRAINT open_tasks_queued_check CHECK ((state IN ('QUEUED',
    'RUNNING')) = (queued_time IS NOT NULL))
);
INSERT INTO open_tasks (task_id, job_id, queue, owner, task_name, state, attempt, priority,
  due_time, order_time, dispatch_order,
  queued_time, worker_id, lease_expire_time)
SELECT t.id, t.job_id, t.queue, t.owner, t.task_name, CASE
  WHEN t.state = 'READY' AND t.run_after > now() THEN 'WAITING' ELSE t.state END,
  t.attempt, j.priority, t.run_after, t.dispatch_order + j.priority * interval '1 minute',
  CASE WHEN t.state = 'READY' AND t.run_after <= now() THEN t.dispatch_order END,
  CASE WHEN t.state IN ('QUEUED', 'RUNNING') THEN coalesce(t.queued_time, now()) END, t.worker_id,
    t.lease_expire_time
FROM tasks t JOIN jobs j ON j.id = t.job_id WHERE t.state IN ('READY', 'QUEUED', 'RUNNING');
CREATE INDEX open_tasks_ready_idx ON open_tasks (queue, task_name, owner, dispatch_order)
  WHERE dispatch_order IS NOT NULL;
CREATE INDEX open_tasks_in_flight_idx ON open_tasks (queue, owner) WHERE queued_time IS NOT NULL;
CREATE INDEX open_tasks_waiting_idx ON open_tasks (queue, due_time)
  WHERE dispatch_order IS NULL AND queued_time IS NULL;
UPDATE tasks SET state = 'OPEN' WHERE state IN ('READY', 'QUEUED', 'RUNNING');
DROP INDEX tasks_in_flight_idx, tasks_lease_idx, tasks_ready_idx, tasks_job_id_step_idx;
ALTER TABLE tasks DROP COLUMN queue, DROP COLUMN task_name, DROP COLUMN owner,
  DROP COLUMN run_after, DROP COLUMN dispatch_order,
  DROP COLUMN queued_time, DROP COLUMN worker_id, DROP COLUMN lease_expire_time,
    ADD COLUMN result_blob uuid,
  ALTER COLUMN attempt TYPE int, ALTER COLUMN allowed TYPE int, ALTER COLUMN returned TYPE int,
  ADD CONSTRAINT tasks_state_check CHECK (state IN ('OPEN', 'CANCELLED', 'FAILED', 'SUCCEEDED'));
CREATE UNIQUE INDEX tasks_job_id_step_shard_key ON tasks (job_id, step, shard);
ALTER TABLE attempts DROP CONSTRAINT attempts_task_id_fkey, ALTER COLUMN number TYPE int;
"""

_LEFT = """
ALTER TABLE items ADD COLUMN key text, ADD COLUMN number int;
UPDATE items SET key = input::text, number = input;
ALTER TABLE items DROP CONSTRAINT items_pkey, ALTER COLUMN key SET NOT NULL, ALTER COLUMN number
  SET NOT NULL,
  ADD CONSTRAINT items_pkey PRIMARY KEY (job_id, step, number);
ALTER TABLE items ALTER COLUMN input DROP NOT NULL;
ALTER TABLE artifacts ADD COLUMN key text, ADD COLUMN position int;
UPDATE artifacts a SET key = coalesce(a.input::text, ''), position = p.position - 1
FROM (SELECT job_id, step, name, row_number() OVER (PARTITION BY job_id, step, shard
  ORDER BY input, name) AS position FROM artifacts) p
WHERE p.job_id = a.job_id AND p.step = a.step AND p.name = a.name;
ALTER TABLE artifacts ALTER COLUMN key SET NOT NULL, ALTER COLUMN position SET NOT NULL;
CREATE INDEX artifacts_blob_id_idx ON artifacts (blob_id);
ALTER TABLE events DROP CONSTRAINT events_job_id_fkey, ALTER COLUMN attempt TYPE int;
CREATE INDEX events_transaction_id_idx ON events USING brin (((transaction_id::text)::bigint));
"""

# An analysis took the pixels of the rendering steps it came after, and a report had no items. Steps
# that have tasks get the inputs these work on; the others are planned when they are unblocked.
_SOURCES = """
UPDATE steps SET sources = '[]' WHERE operation = 'export_report';
UPDATE steps s SET sources = (
  SELECT jsonb_agg(jsonb_build_array(u.ordinal, 'pixels', false) ORDER BY u.ordinal)
  FROM steps u WHERE u.job_id = s.job_id AND u.ordinal = ANY(s.after)
    AND u.operation = 'render_dicom'
) WHERE operation = 'analyze_images';
INSERT INTO step_inputs (job_id, step, number, key, input, parts)
SELECT s.job_id, s.ordinal, a.input, a.key, a.input,
  jsonb_agg(jsonb_build_array(a.blob_id, a.role, a.name, b.media_type, a.step) ORDER BY a.step)
FROM steps s JOIN artifacts a ON a.job_id = s.job_id AND a.step = ANY(s.after)
  AND a.role = 'pixels' AND a.input IS NOT NULL
JOIN blobs b ON b.id = a.blob_id
WHERE s.operation = 'analyze_images' AND EXISTS (SELECT FROM tasks t
  WHERE t.job_id = s.job_id AND t.step = s.ordinal AND t.input_count > 0)
GROUP BY s.job_id, s.ordinal, a.input, a.key;
"""

_OWNERS = """
CREATE TABLE owners (
  owner text NOT NULL, max_tasks int, create_time timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT owners_pkey PRIMARY KEY (owner),
    CONSTRAINT owners_max_tasks_check CHECK (max_tasks >= 0)
);
INSERT INTO owners (owner, max_tasks) SELECT owner, max_tasks FROM owner_limits;
DROP TABLE owner_limits;
ALTER TABLE workers ADD COLUMN operations text[] NOT NULL DEFAULT '{}';
"""

# Rows that change often leave room for the next version on their page (HOT). Vacuum comes early to
# open_tasks and workers, where all rows die soon.
_STORAGE = """
ALTER TABLE jobs SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE steps SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE tasks SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE open_tasks
  SET (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.01,
  autovacuum_analyze_threshold = 1000, autovacuum_analyze_scale_factor = 0.1,
    autovacuum_vacuum_cost_delay = 0);
ALTER TABLE workers
  SET (fillfactor = 50, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);
"""

_COMMENTS = {
    "steps.task_name": "Celery's, of the operation",
    "steps.sources": (
        "of its inputs: [[ordinal of a step or null for the job, role, "
        "grouped by the parent of the key], ...]; null for the inputs of the job, empty for none"
    ),
    "steps.inputs_per_task": "0 for one task with all of them",
    "steps.lost_inputs": "of its failed tasks",
    "steps.items_total": "of its tasks that have a result, as the next three",
    "step_inputs.input": "number of the job's input that it comes from, if it is one",
    "step_inputs.parts": "[[blob, role, name, media type, step], ...]",
    "tasks.state": "how it ended; OPEN while it is in open_tasks",
    "tasks.attempt": "claims so far; while it is open, open_tasks knows",
    "tasks.result_blob": "the blob that the result is in, if it is large",
    "open_tasks.owner": "of the job, for fair share",
    "open_tasks.attempt": "claims so far; the fencing token",
    "open_tasks.priority": "of the job",
    "open_tasks.due_time": "not to be dispatched before",
    "open_tasks.order_time": "its first due_time, which gives its place",
    "open_tasks.dispatch_order": (
        "order_time less a minute per point of priority: ageing that needs no upkeep; "
        "set while READY"
    ),
    "open_tasks.queued_time": "set while QUEUED or RUNNING",
    "items.number": "of the step's input",
    "items.key": "of the step's input",
    "items.input": "number of the job's input that it comes from, if it is one",
    "artifacts.position": "among the artifacts of its task",
    "artifacts.key": "of the item it belongs to; empty for none",
    "artifacts.input": "number of the job's input that it comes from, if it is one",
    "owners.max_tasks": (
        "most tasks of the owner that are queued or running at once, over all queues; "
        "null for no limit"
    ),
    "workers.operations": "Celery task names that it runs",
}


def upgrade() -> None:
    run = op.get_bind().exec_driver_sql
    for text in (
        _SIZES,
        _BLOCKED,
        _JOBS,
        _STEPS,
        _STEPS_DONE,
        _TASKS,
        _LEFT,
        _SOURCES,
        _OWNERS,
        _STORAGE,
    ):
        for statement in filter(str.strip, text.split(";\n")):
            run(statement)
    for column, comment in _COMMENTS.items():
        text = comment.replace("'", "''")
        run(f"COMMENT ON COLUMN {column} IS '{text}'")
