"""Models: what workers tell of theirs, what the API makes of it, tasks whose model is elsewhere."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest
from fluoro.v1.classify_pb2 import ModelChoice
from fluoro.v1.explanation_pb2 import Cause
from fluoro.v1.job_pb2 import Attempt, Job
from fluoro.v1.job_service_pb2 import ExplainJobRequest
from fluoro.v1.model_pb2 import Model, ModelDeployment
from fluoro.v1.model_service_pb2 import GetModelRequest, ListModelsRequest
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import heartbeats, models
from fluoro_jobs.ledger.attempts import Worker
from fluoro_jobs.ledger.models import announce, is_served_elsewhere, live_models
from fluoro_jobs.named_models import FIELDS, Named, models_of, models_of_step
from fluoro_jobs.operations import BY_FIELD, OPERATIONS
from fluoro_jobs.testing.rig import OWNER, Rig, until
from gateway.testing import Client, refused, serving
from ml_worker.settings import SHIPPED_MODELS
from pydicom.data import get_testdata_file

READY, UNAVAILABLE = Model.STATE_READY, Model.STATE_UNAVAILABLE
MINE = (("fluoro-owner", OWNER),)


@pytest.fixture
async def client(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Client]:
    async with serving(database_url, redis_url, blob_url) as client:
        yield client


def model(
    name: str = "tissue", version: str = "1.0.0", card: str = "# A card", **fields: object
) -> Model:
    """A model as one worker tells of it. problem: why it is not served."""
    problem = fields.pop("problem", Model.PROBLEM_UNSPECIFIED)
    state = UNAVAILABLE if problem else READY
    one = ModelDeployment(state=state, problem=problem, workers=1)  # type: ignore[arg-type]
    path = f"models/{name}/versions/{version}"
    return Model(name=path, state=state, card=card, deployments=[one], **fields)  # type: ignore[arg-type]


def worker_with(rig: Rig, *told: Model, slots: int = 1) -> Worker:
    """A worker process as the ledger lists it after a heartbeat and its models."""
    worker = Worker(new_id(), f"host:{new_id()}", "ml", slots, "1", ("ml.analyze",))
    with rig.connection() as connection:
        heartbeats.beat(connection, worker, [])
        assert announce(connection, worker.id, told)
    return worker


def listed(rig: Rig) -> list[tuple[str, int, "Model.State.ValueType"]]:
    with rig.connection() as connection:
        return [
            (said.about.name, said.workers, said.about.state) for said in live_models(connection)
        ]


def test_workers_that_say_the_same_are_counted_and_the_dead_and_those_that_left_are_not(
    rig: Rig,
) -> None:
    first, second, third = (worker_with(rig, model()) for _ in range(3))
    bad = worker_with(rig, model(problem=Model.PROBLEM_FILE_MISMATCH))
    path = "models/tissue/versions/1.0.0"
    assert sorted(listed(rig)) == [(path, 1, UNAVAILABLE), (path, 3, READY)]
    with rig.connection() as connection:
        connection.execute("UPDATE workers SET expire_time = now() WHERE id = %s", (first.id,))
        heartbeats.leave(connection, second)
        heartbeats.leave(connection, bad)
    assert listed(rig) == [(path, 1, READY)]
    assert third


def test_models_replace_those_before_and_those_of_a_worker_that_is_not_listed_do_nothing(
    rig: Rig,
) -> None:
    worker = worker_with(rig, model("a"), model("b"))
    with rig.connection() as connection:
        assert announce(connection, worker.id, [model("b", problem=Model.PROBLEM_FILES_CHANGED)])
        assert not announce(connection, new_id(), [model("c")])
    assert listed(rig) == [("models/b/versions/1.0.0", 1, UNAVAILABLE)]


def test_a_card_in_utf_16_keeps_no_models_from_the_ledger(rig: Rig) -> None:
    worker_with(rig, model(card="# C\0a\0rd\0"), model("b"))
    assert len(listed(rig)) == 2


def test_to_announce_nothing_new_writes_nothing(rig: Rig) -> None:
    worker = worker_with(rig, model())
    with rig.connection() as connection:
        before = connection.execute("SELECT xmin FROM models").fetchone()
        assert announce(connection, worker.id, [model()])
        assert connection.execute("SELECT xmin FROM models").fetchone() == before
        assert announce(connection, worker.id, [model(card="# Another")])
        assert connection.execute("SELECT xmin FROM models").fetchone() != before


def test_a_model_is_elsewhere_only_where_a_live_worker_with_slots_serves_it(rig: Rig) -> None:
    here = worker_with(rig, model("mine"))
    worker_with(rig, model(), model("bad", problem=Model.PROBLEM_RUN_FAILED))
    worker_with(rig, model("drained"), slots=0)
    with rig.connection() as connection:
        served = {
            (name, version): is_served_elsewhere(connection, here.id, name, version)
            for name in ("tissue", "bad", "mine", "drained")
            for version in ("", "1.0.0", "2.0.0")
        }
    assert {key for key, yes in served.items() if yes} == {("tissue", ""), ("tissue", "1.0.0")}


async def test_models_are_listed_by_id_and_newest_first_and_paged_without_cards(
    client: Client, rig: Rig
) -> None:
    worker_with(rig, *(model("b", version) for version in ("1.9.0", "1.10.0")), model("a"))
    worker_with(rig, model("b", "1.10.0", problem=Model.PROBLEM_FELL_BACK_TO_CPU))
    whole = (await client.models.ListModels(ListModelsRequest(), metadata=MINE)).models
    assert [one.name.removeprefix("models/") for one in whole] == [
        "a/versions/1.0.0",
        "b/versions/1.10.0",
        "b/versions/1.9.0",
    ]
    assert [(one.state, one.card) for one in whole] == [(READY, "")] * 3
    assert [(one.state, one.workers) for one in whole[1].deployments] == [
        (READY, 1),
        (UNAVAILABLE, 1),
    ]
    names, token = [], ""
    while True:
        request = ListModelsRequest(page_size=1, page_token=token)
        page = await client.models.ListModels(request, metadata=MINE)
        names += [one.name for one in page.models]
        token = page.next_page_token
        if not token:
            break
    assert names == [one.name for one in whole]


async def test_a_model_is_got_with_its_card_the_newest_that_is_ready_unless_a_version_is_named(
    client: Client, rig: Rig
) -> None:
    bad = model("b", "2.0.0", problem=Model.PROBLEM_WARM_UP_DIFFERS)
    worker_with(rig, model("b", "1.0.0"), bad, model("c", problem=Model.PROBLEM_RUN_FAILED))

    async def got(name: str) -> Model:
        answer = await client.models.GetModel(GetModelRequest(name=name), metadata=MINE)
        found: Model = answer.model
        return found

    assert ((await got("models/b")).name, (await got("models/b")).card) == (
        "models/b/versions/1.0.0",
        "# A card",
    )
    assert (await got("models/b/versions/2.0.0")).state == UNAVAILABLE
    assert (await got("models/c")).state == UNAVAILABLE
    for name in ("models/d", "models/b/versions/3.0.0"):
        told = await refused(got(name))
        assert (told.code.name, told.reason) == ("NOT_FOUND", "MODEL_UNKNOWN")
    for name in ("", "b", "models/B", "models/b/versions/1", "models/b/versions/01.0.0"):
        assert (await refused(got(name))).reason == "INVALID_ARGUMENT"


def test_the_models_of_a_step_are_found_in_every_operation_that_names_some() -> None:
    for operation in OPERATIONS:
        names = any("model" in field.name for field in operation.request.DESCRIPTOR.fields)
        assert not names or operation.field in FIELDS
    both = [ModelChoice(model="a"), ModelChoice(model="b", version="2.0.0")]
    request = BY_FIELD["classify_images"].request(models=both)
    assert models_of(request) == [Named("a", ""), Named("b", "2.0.0")]
    request = BY_FIELD["assess_dermoscopy"].request(outline=both[1])
    assert models_of(request) == [Named("b", "2.0.0")]
    assert models_of(BY_FIELD["compare_images"].request()) == []
    request = BY_FIELD["analyze_images"].request(model="a", version="1.0.0")
    assert models_of(request) == [Named("a", "1.0.0")]
    assert models_of_step("analyze_images", request.SerializeToString()) == models_of(request)
    assert models_of_step("analyze_images", b"\xff") == ()
    assert models_of_step("render_dicom", b"") == ()


def a_job(rig: Rig, name: str, version: str = "") -> Job:
    ct = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    job = Job(inputs=[rig.blob(ct)])
    job.steps.add(name="render").render_dicom.SetInParent()
    step = job.steps.add(name="analyze", after=["render"])
    step.analyze_images.model, step.analyze_images.version = name, version
    step.retry_policy.max_attempts = 1
    return job


async def missing(client: Client, job: UUID) -> list[str]:
    """The models that an explanation says are missing."""
    request = ExplainJobRequest(name=f"jobs/{job}")
    found = (await client.jobs.ExplainJob(request, metadata=MINE)).explanation
    return [
        name
        for step in found.steps
        for cause in step.causes
        if cause.kind == Cause.KIND_NO_MODEL
        for name in cause.models
    ]


async def test_an_explanation_names_models_that_no_live_worker_serves(
    client: Client, rig: Rig
) -> None:
    jobs = {
        name: rig.submit(a_job(rig, *name))
        for name in (("tissue", ""), ("tissue", "2.0.0"), ("x", ""))
    }
    worker_with(rig, model(), model("x", problem=Model.PROBLEM_RUN_FAILED))
    assert {name: await missing(client, job) for name, job in jobs.items()} == {
        ("tissue", ""): [],
        ("tissue", "2.0.0"): ["models/tissue/versions/2.0.0"],
        ("x", ""): ["models/x"],
    }
    request = ExplainJobRequest(name=f"jobs/{jobs['x', '']}")
    told = (await client.jobs.ExplainJob(request, metadata=MINE)).explanation.message
    assert told.startswith(
        "Step analyze: None of the 1 live workers of the queue ml serves models/x"
    )


def renamed(folder: Path, name: str) -> Path:
    """The shipped model under another name."""
    place = shutil.copytree(SHIPPED_MODELS / "ct-tissue", folder / name) / "1.0.0"
    text = (place / "model.toml").read_text()
    (place / "model.toml").write_text(text.replace('name = "ct-tissue"', f'name = "{name}"'))
    return place


def attempts(rig: Rig, job: UUID) -> list[tuple[str, str]]:
    """Outcome and reason of each attempt of the last step."""
    return [
        (Attempt.Outcome.Name(one.outcome).removeprefix("OUTCOME_"), one.reason)
        for task in rig.job(job).steps[-1].tasks
        for one in task.attempts
    ]


def test_a_task_waits_uncounted_for_a_model_that_another_worker_serves_and_fails_if_none_does(
    rig: Rig, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for service in ("dicom_worker", "scheduler"):
        rig.start(service, slots=1)
    rig.start("ml_worker", ml_models_folder=folder, ml_poll_seconds=0.2)
    until(lambda: ("models/ct-tissue/versions/1.0.0", 1, READY) in listed(rig), 60, "the worker")
    elsewhere = worker_with(rig, model("my-tissue"))
    job = rig.submit(a_job(rig, "my-tissue"))
    until(lambda: attempts(rig, job)[:1] == [("RELEASED", "MODEL_UNAVAILABLE")], 60, rig.logs())
    known = len(listed(rig))
    renamed(folder, "my-tissue")
    until(lambda: len(listed(rig)) == known + 1, 30, "the model in the folder")
    with rig.connection() as connection:
        heartbeats.leave(connection, elsewhere)
    ended = rig.finished(job, 60)
    assert ended.state == Job.STATE_SUCCEEDED, attempts(rig, job)
    assert {reason for _, reason in attempts(rig, job)[:-1]} == {"MODEL_UNAVAILABLE"}
    result = ended.steps[-1].analyze_images_result
    assert (result.model.name, result.model.version) == ("my-tissue", "1.0.0")
    assert (len(result.model.sha256), len(result.model.manifest_sha256)) == (32, 32)

    unknown = rig.submit(a_job(rig, "my-tissue", "9.0.0"))
    assert rig.finished(unknown).state == Job.STATE_FAILED
    assert attempts(rig, unknown) == [("FAILED", "MODEL_UNKNOWN")]
    message = rig.job(unknown).steps[-1].tasks[0].attempts[0].message
    assert "my-tissue 1.0.0" in message


def test_the_number_of_entries_that_are_read_is_bounded(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "MOST_LISTED", 2)
    worker_with(rig, *(model(name) for name in "abc"))
    assert [name for name, *_ in listed(rig)] == [
        "models/a/versions/1.0.0",
        "models/b/versions/1.0.0",
    ]
