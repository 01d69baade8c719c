import importlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fluoro.v1 import job_pb2
from fluoro_jobs import operations
from fluoro_jobs.operations import DICOM_FILES, OPERATIONS, QUEUES, Operation
from fluoro_jobs.worker.handler import Handler

STEP = job_pb2.Step.DESCRIPTOR
ROLE = re.compile(r"role `([\w-]+)`")
FIRST_OF_THE_HUNDRED = 100
"""Field number; the operations before it fill 10 to 13."""

each_operation = pytest.mark.parametrize(
    "operation", OPERATIONS, ids=lambda operation: operation.field
)
each_queue = pytest.mark.parametrize("queue", QUEUES)


def messages_of(oneof: str) -> dict[str, str]:
    """Fields of a oneof of Step and the messages they hold."""
    return {
        field.name: field.message_type.full_name
        for field in STEP.oneofs_by_name[oneof].fields
        if field.message_type
    }


def test_every_operation_of_the_api_has_a_line_in_the_table_and_no_other_has() -> None:
    in_api = messages_of("operation")
    in_table = {operation.field: operation.request.DESCRIPTOR.full_name for operation in OPERATIONS}
    assert in_table == in_api
    assert len(OPERATIONS) == len(in_table)


def test_every_operation_has_a_result_of_its_name_and_no_result_is_without_an_operation() -> None:
    in_api = messages_of("result")
    assert {
        f"{operation.field}_result": operation.result.DESCRIPTOR.full_name
        for operation in OPERATIONS
    } == in_api


def test_no_task_name_is_used_twice() -> None:
    names = [name for operation in OPERATIONS for name in operation.task_names]
    assert len(set(names)) == len(names)


def documentation(root: Path, operation: Operation) -> str:
    """The comment of the operation's message, as one line."""
    text = (root / "protos" / operation.request.DESCRIPTOR.file.name).read_text()
    comment = re.search(rf"((?://.*\n)+)message {operation.request.DESCRIPTOR.name} \{{", text)
    assert comment
    return " ".join(line.removeprefix("//").strip() for line in comment[1].splitlines())


@each_operation
def test_the_api_documents_the_queue_and_the_task_name_of_the_table(
    root: Path, operation: Operation
) -> None:
    words = documentation(root, operation)
    assert f"queue `{operation.queue}`" in words
    assert f"Celery task `{operation.task_name}`" in words


@each_operation
def test_the_api_documents_the_roles_that_the_table_says_an_operation_leaves(
    root: Path, operation: Operation
) -> None:
    _, _, leaves = documentation(root, operation).partition("Leaves ")
    assert set(ROLE.findall(leaves)) == set(operation.leaves)


def test_every_role_that_an_operation_reads_is_known() -> None:
    left = {role for operation in OPERATIONS for role in operation.leaves}
    read = {role for operation in OPERATIONS for role in operation.reads}
    assert read <= left | set(DICOM_FILES)


def test_a_worker_takes_messages_by_the_former_names_of_its_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renamed = replace(OPERATIONS[0], task_name="dicom.look", formerly=("dicom.inspect",))
    monkeypatch.setattr(operations, "OPERATIONS", (renamed, *OPERATIONS[1:]))
    names = operations.task_names_of("dicom")
    assert {"dicom.look", "dicom.inspect", "dicom.render"} <= set(names)
    assert "ml.analyze" not in names


def test_the_number_of_a_result_follows_from_the_number_of_its_operation() -> None:
    for operation in OPERATIONS:
        number = STEP.fields_by_name[operation.field].number
        result = STEP.fields_by_name[f"{operation.field}_result"].number
        assert number in range(10, 20) or number in range(100, 200), operation.field
        assert result == number + (30 if number < FIRST_OF_THE_HUNDRED else 100), operation.field


@each_queue
def test_every_queue_has_the_service_that_drains_it(root: Path, queue: str) -> None:
    assert (root / "services" / f"{queue}-worker" / "pyproject.toml").is_file()


def test_every_worker_drains_a_queue(root: Path) -> None:
    assert {path.name.removesuffix("-worker") for path in root.glob("services/*-worker")} == set(
        QUEUES
    )


@each_queue
def test_a_worker_handles_exactly_the_operations_of_its_queue(queue: str) -> None:
    handlers: tuple[Handler[Any, Any], ...] = importlib.import_module(
        f"{queue}_worker.operations"
    ).HANDLERS
    handled = [handler.operation.task_name for handler in handlers]
    assert sorted(handled) == sorted(
        operation.task_name for operation in OPERATIONS if operation.queue == queue
    )
