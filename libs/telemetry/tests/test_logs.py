"""What a process writes to stderr, read from a real process."""

import json
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fluoro_telemetry.logs import configure_logging
from fluoro_telemetry.privacy import REDACTED, redact_patient_data

PREAMBLE = """
import logging, sys, warnings
import structlog
from fluoro_telemetry.logs import configure_logging
log = structlog.get_logger("fluoro.test")
"""


def stderr_of(script: str) -> str:
    command = [sys.executable, "-c", PREAMBLE + textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ""
    return done.stderr


def events_of(script: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stderr_of(script).splitlines()]


def test_an_event_is_one_json_object_with_utc_time_level_logger_and_service() -> None:
    [event] = events_of("""
        configure_logging("gateway")
        log.info("job_accepted", job="jobs/1", steps=2)
    """)
    time = datetime.fromisoformat(event.pop("timestamp"))
    assert time.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - time) < timedelta(minutes=1)
    assert event == {
        "event": "job_accepted",
        "job": "jobs/1",
        "steps": 2,
        "level": "info",
        "logger": "fluoro.test",
        "service": "gateway",
    }


def test_the_standard_library_s_logs_and_warnings_come_the_same_way() -> None:
    told, warned = events_of("""
        configure_logging("worker")
        logging.getLogger("celery.worker").warning("lost %s of %d", "connection", 3)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    """)
    assert (told["event"], told["logger"], told["level"], told["service"]) == (
        "lost connection of 3",
        "celery.worker",
        "warning",
        "worker",
    )
    assert warned["logger"] == "py.warnings"
    assert "DeprecationWarning: old" in warned["event"]


@pytest.mark.parametrize("logger", ["log", "logging.getLogger('grpc')"])
def test_a_traceback_is_one_structured_field_without_local_variables(logger: str) -> None:
    [event] = events_of(f"""
        configure_logging("worker")
        def read():
            secret = "DOE^JOHN"
            raise ValueError("unreadable")
        try:
            read()
        except ValueError:
            {logger}.exception("failed")
    """)
    [raised] = event["exception"]
    assert (raised["exc_type"], raised["exc_value"]) == ("ValueError", "unreadable")
    assert [frame["name"] for frame in raised["frames"]] == ["<module>", "read"]
    assert "DOE" not in json.dumps(event)


def test_the_level_holds_for_both_worlds() -> None:
    events = events_of("""
        configure_logging("worker", level="warning")
        log.info("quiet")
        logging.getLogger("kombu").info("quiet")
        log.warning("loud")
        logging.getLogger("kombu").warning("loud")
    """)
    assert [event["event"] for event in events] == ["loud", "loud"]


def test_bound_context_reaches_every_log_line() -> None:
    events = events_of("""
        configure_logging("worker")
        with structlog.contextvars.bound_contextvars(job="jobs/7"):
            log.info("one")
            logging.getLogger("alembic").info("two")
    """)
    assert [event["job"] for event in events] == ["jobs/7", "jobs/7"]


def test_the_last_configuration_counts_and_nothing_is_written_twice() -> None:
    events = events_of("""
        logging.basicConfig()
        configure_logging("a")
        configure_logging("b")
        log.info("one")
        logging.getLogger("x").info("two")
    """)
    assert [(event["service"], event["event"]) for event in events] == [("b", "one"), ("b", "two")]


def test_the_console_form_is_for_people_and_hides_local_variables_too() -> None:
    text = stderr_of("""
        configure_logging("worker", format="console")
        log.info("hello", patient_name="DOE^JOHN")
        def read():
            secret = "DOE^JOHN"
            raise ValueError("unreadable")
        try:
            read()
        except ValueError:
            log.exception("failed")
    """)
    assert "hello" in text
    assert "ValueError: unreadable" in text
    assert "DOE" not in text
    assert "\x1b[" not in text


@pytest.mark.parametrize(
    ("options", "setting"),
    [({"level": "LOUD"}, "FLUORO_LOG_LEVEL"), ({"format": "xml"}, "FLUORO_LOG_FORMAT")],
)
def test_a_setting_that_means_nothing_is_refused(options: dict[str, str], setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        configure_logging("gateway", **options)


def test_patient_data_is_taken_out_before_it_is_written() -> None:
    text = stderr_of("""
        configure_logging("worker")
        header = {"PatientBirthDate": "19700101", "rows": 512}
        log.info("read", PatientName="DOE^JOHN", header=header, items=[{"mrn": "DOE-4711"}])
    """)
    event = json.loads(text)
    assert event["header"] == {"PatientBirthDate": REDACTED, "rows": 512}
    assert not {"DOE", "19700101", "4711"} & set(
        text.replace("^", '"').replace("-", '"').split('"')
    )


@pytest.mark.parametrize(
    "key",
    [
        "patient_name",
        "PatientName",
        "PatientID",
        "patient-id",
        "patient.birth_date",
        "Patient's Name",
        "patient",
        "birth date",
        "BirthDate",
        "dob",
        "OtherPatientIDs",
        "accession_number",
        "ReferringPhysicianName",
        "InstitutionName",
        "(0010,0010)",
        "(0010, 1001)",
        "00100020",
    ],
)
def test_a_key_that_names_patient_data_is_redacted_at_any_depth(key: str) -> None:
    event = {"event": "read", "a": [{"b": ({key: "DOE^JOHN"},)}], key: {"family": "DOE"}}
    redacted = redact_patient_data(None, "info", event)
    assert redacted == {"event": "read", "a": [{"b": [{key: REDACTED}]}], key: REDACTED}
    assert event["a"] == [{"b": ({key: "DOE^JOHN"},)}]


@pytest.mark.parametrize(
    "key",
    [
        "event",
        "job",
        "name",
        "filename",
        "operation",
        "rows",
        "inpatient_queue",
        "00280010",
        "exception",
    ],
)
def test_other_keys_are_left_alone(key: str) -> None:
    assert redact_patient_data(None, "info", {key: "value"}) == {key: "value"}


def test_a_whole_data_set_is_never_written() -> None:
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.PatientName = "DOE^JOHN"
    assert redact_patient_data(None, "info", {"data": [data], "element": data["PatientName"]}) == {
        "data": [REDACTED],
        "element": REDACTED,
    }
