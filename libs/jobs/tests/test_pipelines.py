"""Pipelines: which files make one, what is said of the others, and what parameters become."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import SubmitJobRequest
from fluoro.v1.pipeline_service_pb2 import ListPipelinesRequest
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.pipelines import BadPipelineError, Pipelines, load, template

HEAD = "name: look\nversion: 1\ntitle: Look\n"
"""Three lines."""
STEPS = "steps:\n  - name: look\n    render_dicom: {}\n"
EVERY_TYPE = """\
name: every-type
version: 3
title: Every type
accepts: [application/dicom]
parameters:
  center: {type: number, min: -1000, max: 1000}
  width: {type: number, min: 1, max: 5000}
  size: {type: integer, min: 0, max: 10000}
  policy: {type: enum, choices: [ITEM_FAILURE_POLICY_ALLOW, ITEM_FAILURE_POLICY_FAIL_STEP]}
  patience: {type: duration, default: 90s, max: 21600s}
  title: {type: string, required: true, min: 1}
  format: {type: enum, choices: [FORMAT_PDF, FORMAT_JSON]}
steps:
  - name: look
    max_inputs_per_task: ${size}
    attemptTimeout: ${patience}
    item_failure_policy: ${policy}
    render_dicom:
      window:
        center: ${center}
        width: ${width}
  - name: report
    after: [look]
    export_report:
      title: ${title}
      formats:
        - FORMAT_PDF
        - ${format}
"""

BAD = {
    "no YAML": ("name: [", "look.yaml:1: this is not YAML"),
    "not UTF-8": ("name: \0", "look.yaml:1: this is not YAML"),
    "no character": ('title: "\\UFFFFFFFF"', "look.yaml:1: this is not YAML"),
    "half a character": (f'{HEAD}description: "\\uD800"\n{STEPS}', "look.yaml:4: half of a"),
    "a list": ("- name", "look.yaml:1: write a mapping"),
    "a bomb of aliases": ("a: &a [x]\nb: [*a, *a]", "look.yaml:1: write it out"),
    "a tag": ("name: !!python/name:os.system", "look.yaml:1: leave the tag out"),
    "too deep": ("a: " + "[" * 30 + "]" * 30, "look.yaml:1: at most 20 lists and mappings"),
    "too large": ("# " + "x" * 2**16, "look.yaml:1: a file has at most 65536 bytes"),
    "a key twice": (f"{HEAD}title: Again\n{STEPS}", "look.yaml:4: title stands here twice"),
    "no value": (f"{HEAD}description:\n{STEPS}", "look.yaml:4: give a value"),
    "no name": ("version: 1", "look.yaml:1: name is missing: lower case letters"),
    "a bad name": ("name: Look", "look.yaml:1: name must be lower case letters"),
    "no version": ("name: look\nversion: latest", "look.yaml:2: version must be a whole number"),
    "no steps": (HEAD, "look.yaml:1: steps is missing"),
    "a field too many": (f"{HEAD}{STEPS}colour: red", "look.yaml:7: colour is not known here"),
    "a bad media type": (f"{HEAD}accepts: [x]\n{STEPS}", "look.yaml:4: must be a media type"),
    "an unknown field of an operation": (
        f"{HEAD}steps:\n  - name: look\n    render_dicom: {{windw: 1}}",
        'look.yaml:5: Message type "fluoro.v1.RenderDicom" has no field named "windw"',
    ),
    "what the rules refuse": (
        f"{HEAD}steps:\n  - name: look\n    render_dicom:\n      window:\n        width: 0",
        "look.yaml:8: steps[0].render_dicom.window.width: Must be greater than or equal to 1.",
    ),
    "a step that has nothing to work on": (
        f"{HEAD}steps:\n  - name: look\n    analyze_images: {{model: ct-tissue}}",
        "look.yaml:5: steps[0].after: Name a step that leaves `pixels`",
    ),
    "a step that is not there": (
        f"{HEAD}steps:\n  - name: look\n    after: [nobody]\n    render_dicom: {{}}",
        "look.yaml:6: steps[0].after[0]: Must be one of look.",
    ),
    "what is output only": (
        f"{HEAD}steps:\n  - name: look\n    render_dicom: {{}}\n    state: STATE_RUNNING",
        "look.yaml:7: state is output only",
    ),
    "a marker within text": (
        f"{HEAD}steps:\n  - name: look\n    analyze_images: {{model: 'a ${{b}}'}}",
        "look.yaml:6: a marker, ${name}, is the whole of a value",
    ),
    "a marker for no parameter": (
        f"{HEAD}steps:\n  - name: look\n    max_inputs_per_task: ${{x}}\n    render_dicom: {{}}",
        "look.yaml:6: x is not among the parameters",
    ),
    "a marker in the graph": (
        f"{HEAD}parameters: {{x: {{type: boolean}}}}\n{STEPS}    allow_identifiable: ${{x}}",
        "look.yaml:8: no parameter sets allow_identifiable: the graph is fixed",
    ),
    "a parameter that does nothing": (
        f"{HEAD}parameters: {{x: {{type: boolean}}}}\n{STEPS}",
        "look.yaml:4: no step uses ${x}; drop it",
    ),
}


def with_size(parameter: str) -> str:
    return (
        f"{HEAD}parameters:\n  size: {parameter}\nsteps:\n  - name: look\n"
        "    max_inputs_per_task: ${size}\n    render_dicom: {}\n"
    )


BAD_PARAMETERS = {
    "{type: int}": "look.yaml:5: type must be one of string, number, integer",
    "{type: integer, default: x}": "look.yaml:5: default: Must be a whole number from -2147483648",
    "{type: integer, max: 10, default: 11}": "look.yaml:5: default: Must be a whole number",
    "{type: integer, min: 2, max: 1}": "look.yaml:5: max must not be below min",
    "{type: integer, least: 1}": "look.yaml:5: least is not known here",
    "{type: enum}": "look.yaml:5: choices is missing",
    "{type: enum, choices: [a, a]}": "look.yaml:5: choices must be a list of 1 to 100 different",
    "{type: integer, min: 0, max: 9, default: 1, required: true}": (
        "look.yaml:5: size is required, so its default is never used"
    ),
    # Values that are allowed, and that the step cannot take.
    "{type: integer, max: 100}": (
        "look.yaml:8: steps[0].max_inputs_per_task: Must be greater than or equal to 0 "
        "and less than or equal to 10000. (with size = -2147483648)"
    ),
    "{type: integer, min: 0}": "look.yaml:8: steps[0].max_inputs_per_task: Must be greater than",
    "{type: number, min: 0, max: 100}": "look.yaml:7: Failed to parse max_inputs_per_task field",
    "{type: string}": "look.yaml:7: Failed to parse max_inputs_per_task field",
    "{type: boolean}": "look.yaml:7: Failed to parse max_inputs_per_task field",
}


SHIPPED = {
    "pipelines/batch-skin-check/versions/1": (
        "52e373dcbb3f2a7edcc6389e1bad3c0ce986377cd393ff44b90b6b32ff6f6071"
    ),
    "pipelines/binary-classify/versions/1": (
        "a343227fcd9e0d4e6c00e312a514bca7ede476e4321502a1956d889259da5c65"
    ),
    "pipelines/burn-classify/versions/1": (
        "4b06432375938eccb164557ee0b84e0e20d753659e43e25ad4c14199297c581f"
    ),
    "pipelines/dermoscopy/versions/1": (
        "936d6b2fb9db236664baa42743e893304355d4463e259f28c25b5f6c3448f6e7"
    ),
    "pipelines/full-classify/versions/1": (
        "b06e377e9f076a573a2d3dfd0ea657b960be4e8cb24fa3a545e897d1b51df7a0"
    ),
    "pipelines/comparison/versions/1": (
        "38faa3f86c8461e2779d10d87c2cd318f2a7a35a0c2941ffd99a3933b8648d31"
    ),
    "pipelines/histopathology/versions/1": (
        "dc038163dc6cf88b27a0bd80f35f5c322d3cc2bef75895a7fc1d3fefe6e74545"
    ),
    "pipelines/mr-brain-mask/versions/1": (
        "06be06736366e78080bc7cdfa719bbe7489a6f7199d701a2d3ac3eec65821936"
    ),
    "pipelines/visualization/versions/1": (
        "2fde566d5ca5ebc9aaffad29e7b3600c833fcec8ecd8a5e79f694c7277244cb5"
    ),
    "pipelines/archive-report/versions/1": (
        "3e06e6471cb9da3016a5e6f9927120fa7287fb15b5b7b1ce510b5516e3d4d72c"
    ),
    "pipelines/ct-tissue/versions/1": (
        "c1ccf6eb4bf9d7c28457121488c8147a309a254ed1aa5084dd74568255422e82"
    ),
    "pipelines/ct-volume/versions/1": (
        "e7a3ccfe26e49ec0321e677195f8f1d76e7d8bef63538e336c547baf809f9743"
    ),
    "pipelines/ct-tissue-dicom/versions/1": (
        "93e566f88cd41a10c72777e015274c8ffd3a303e195e9dd17e3dc09665857c96"
    ),
    "pipelines/deidentify/versions/1": (
        "555912ec3a9d1ac87d27879f224f1471ca903336f351f7f5c1f6e3fe5d147dd9"
    ),
    "pipelines/deidentify-and-export/versions/1": (
        "f349fa8c6d73f8b49b57a7bfac4752c9258cfdfcee979533dc5367efbdde7941"
    ),
    "pipelines/study-deidentify-and-export/versions/1": (
        "25ad9cdc9b3e8f1f7612baaf8a8a484e1fa09a6533985db11c15ea0b9e65b798"
    ),
    "pipelines/dicom-intake/versions/1": (
        "56566cb8105c341658a7c0304a3d45ea999b8620ba59fc458a0256a47ac3c07c"
    ),
    "pipelines/imaging-report/versions/1": (
        "9e18d00af09d7a19169fb9ef29dccfd8719c5a17f6521e04171fd9ac456d7833"
    ),
    "pipelines/photo-archive/versions/1": (
        "b39324f7e8140c7d6e1a12334700047d70938457778d6a2eb2aa4167b92e0432"
    ),
    "pipelines/photo-intake/versions/1": (
        "77c1ce0efe9f47aedd29272963ec8200a639657b19bcfe4895f4ff9882fab04d"
    ),
}
"""SHA-256 of what each version holds. Add lines for new ones; those that were released stay."""


def request(pipeline: str, /, **parameters: Any) -> SubmitJobRequest:
    made = SubmitJobRequest(job=Job(inputs=[f"blobs/{new_id()}"]), pipeline=pipeline)
    made.parameters.update(parameters)
    return made


def pipelines(*texts: str) -> Pipelines:
    return Pipelines(template(text.encode(), "look.yaml") for text in texts)


def steps_of(known: Pipelines, asked: SubmitJobRequest) -> list[Step]:
    """The steps that a submit leads to."""
    known.validate(asked, "ada")
    return list(asked.job.steps)


def refused(known: Pipelines, asked: SubmitJobRequest) -> dict[str, str]:
    with pytest.raises(FluoroError) as error:
        known.validate(asked, "ada")
    assert error.value.reason == Reason.INVALID_ARGUMENT
    first = error.value.violations[0]
    assert f"{first.field}: {first.description}" in error.value.message
    return {bad.field: bad.description for bad in error.value.violations}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_is_no_pipeline_is_refused_with_the_line_and_what_to_do(what: str) -> None:
    text, told = BAD[what]
    with pytest.raises(BadPipelineError) as error:
        template(text.encode(), "look.yaml")
    assert str(error.value).startswith(told)


@pytest.mark.parametrize("parameter", BAD_PARAMETERS)
def test_a_parameter_that_callers_could_not_use_is_refused_with_the_line(parameter: str) -> None:
    with pytest.raises(BadPipelineError) as error:
        template(with_size(parameter).encode(), "look.yaml")
    assert str(error.value).startswith(BAD_PARAMETERS[parameter])


def test_parameters_take_their_place_with_the_type_of_the_field() -> None:
    known = pipelines(EVERY_TYPE)
    look, report = steps_of(
        known,
        request(
            "pipelines/every-type",
            center=-600,
            width=1500.5,
            size=7,
            policy="ITEM_FAILURE_POLICY_FAIL_STEP",
            patience="1.5s",
            title="A",
            format="FORMAT_JSON",
        ),
    )
    assert (look.render_dicom.window.center, look.render_dicom.window.width) == (-600, 1500.5)
    assert look.max_inputs_per_task == 7
    assert look.item_failure_policy == Step.ITEM_FAILURE_POLICY_FAIL_STEP
    assert look.attempt_timeout.ToMilliseconds() == 1500
    assert (report.export_report.title, list(report.export_report.formats)) == ("A", [1, 2])


def test_what_has_no_value_is_left_out_and_what_has_a_default_takes_it() -> None:
    known = pipelines(EVERY_TYPE)
    look, report = steps_of(known, request("pipelines/every-type", title="A"))
    assert look.WhichOneof("operation") == "render_dicom"
    assert not look.render_dicom.HasField("window")
    assert look.attempt_timeout.seconds == 90
    assert list(report.export_report.formats) == [1]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("center", 1001, "Must be a number from -1000 to 1000."),
        ("center", "40", "Must be a number from -1000 to 1000."),
        ("center", float("nan"), "Must be a number from -1000 to 1000."),
        ("center", True, "Must be a number from -1000 to 1000."),
        ("center", None, "Must be a number from -1000 to 1000."),
        ("center", [1], "Must be a number from -1000 to 1000."),
        ("center", {"a": 1}, "Must be a number from -1000 to 1000."),
        ("size", 1.5, "Must be a whole number from 0 to 10000."),
        ("policy", "ALLOW", "Must be one of ITEM_FAILURE_POLICY_ALLOW, ITEM_FAILURE_POLICY_FAIL_"),
        ("patience", "soon", "Must be a duration such as 90s, from 0s to 21600s."),
        ("patience", "21601s", "Must be a duration such as 90s, from 0s to 21600s."),
        ("patience", 90, "Must be a duration such as 90s, from 0s to 21600s."),
        ("title", "", "Must be a string of 1 to 256 characters."),
        ("title", "x" * 257, "Must be a string of 1 to 256 characters."),
        ("title", "bell \a", "Must hold no control characters."),
        ("colour", "red", "pipelines/every-type/versions/3 has no such parameter. It has: center"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_its_parameter_and_not_repeated(
    name: str, value: Any, told: str
) -> None:
    found = refused(
        pipelines(EVERY_TYPE), request("pipelines/every-type", **{"title": "A", name: value})
    )
    assert list(found) == [f'parameters["{name}"]']
    assert found[f'parameters["{name}"]'].startswith(told)


def test_all_bad_parameters_are_named_at_once_and_text_that_is_no_name_is_not_repeated() -> None:
    asked = request("pipelines/every-type", **{"center": "x", "Zhang Wei": 1})
    found = refused(pipelines(EVERY_TYPE), asked)
    assert set(found) == {'parameters["center"]', 'parameters["title"]', "parameters"}
    assert "Zhang" not in str(found)


def test_what_only_the_operation_can_refuse_is_told_of_the_parameter() -> None:
    known = pipelines(EVERY_TYPE)
    found = refused(known, request("pipelines/every-type", title="A", center=1))
    assert found == {'parameters["width"]': "Must be greater than or equal to 1."}


def test_the_same_request_is_the_same_whatever_version_is_the_newest() -> None:
    old = pipelines(HEAD + STEPS)
    new = pipelines(HEAD + STEPS, (HEAD + STEPS).replace("version: 1", "version: 2"))
    asked = request("pipelines/look")
    first, second = (known.validate(copy(asked), "ada") for known in (old, new))
    assert (first.pipeline_version, second.pipeline_version) == (1, 2)
    assert first.sha256 == second.sha256
    pinned = copy(asked)
    pinned.pipeline = "pipelines/look/versions/1"
    assert new.validate(pinned, "ada").sha256 != first.sha256


def copy(asked: SubmitJobRequest) -> SubmitJobRequest:
    made = SubmitJobRequest()
    made.CopyFrom(asked)
    return made


def test_pages_hold_every_pipeline_once_by_name_and_newest_first(tmp_path: Path) -> None:
    for version in range(2, 5):
        text = (HEAD + STEPS).replace("version: 1", f"version: {version}")
        (tmp_path / f"{version}.yaml").write_text(text)
    known = load(str(tmp_path))
    asked, seen = ListPipelinesRequest(page_size=2, all_versions=True), []
    while True:
        page = known.page(asked)
        seen += [one.name for one in page.pipelines]
        if not page.next_page_token:
            break
        asked.page_token = page.next_page_token
    assert [name for name in seen if "look" in name] == [
        f"pipelines/look/versions/{version}" for version in (4, 3, 2)
    ]
    assert len(seen) == len(set(seen)) == len(known)
    newest = [one.name for one in known.page(ListPipelinesRequest()).pipelines]
    assert "pipelines/look/versions/4" in newest
    assert "pipelines/look/versions/3" not in newest


def test_the_operators_files_stand_beside_those_that_ship(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text(HEAD + STEPS)
    (tmp_path / "..data").mkdir()
    (tmp_path / "notes.txt").write_text("not a pipeline")
    known = load(str(tmp_path))
    assert known.find("pipelines/look", "name").title == "Look"
    assert known.find("pipelines/ct-tissue", "name").version == 1


def test_an_operator_may_add_a_version_and_not_change_one(tmp_path: Path) -> None:
    text = HEAD.replace("look", "ct-tissue") + STEPS
    (tmp_path / "a.yaml").write_text(text.replace("version: 1", "version: 2"))
    assert load(str(tmp_path)).find("pipelines/ct-tissue", "name").version == 2
    (tmp_path / "b.yaml").write_text(text)
    (tmp_path / "c.yaml").write_text("name: 1")
    with pytest.raises(BadPipelineError) as error:
        load(str(tmp_path))
    _, second, third = str(error.value).splitlines()
    assert second == (
        f"{tmp_path}/b.yaml:1: version 1 of ct-tissue is in shipped/ct-tissue-1.yaml with other "
        "content; give this one a higher version"
    )
    assert third.startswith(f"{tmp_path}/c.yaml:1: name must be")


def test_the_same_file_twice_is_one_pipeline(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(f"# {name}\n{HEAD}{STEPS}")
    assert load(str(tmp_path)).find("pipelines/look", "name").version == 1


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadPipelineError, match="is not a folder"):
        load(str(tmp_path / "gone"))


def test_a_version_that_ships_never_changes() -> None:
    known = load()
    found = {
        one.name: sha256(json.dumps(one.content, sort_keys=True).encode()).hexdigest()
        for one in (known.find(name, "name") for name in SHIPPED)
    }
    assert found == SHIPPED
    assert len(known) == len(SHIPPED)


def test_a_job_has_at_most_as_many_inputs_as_its_pipeline_says() -> None:
    pipelines = load()
    chosen = pipelines.find("pipelines/batch-skin-check", "pipeline")
    assert chosen.as_proto().max_inputs == 50

    def submit(inputs: int) -> SubmitJobRequest:
        blobs = [f"blobs/{new_id()}" for _ in range(inputs)]
        return SubmitJobRequest(pipeline="pipelines/batch-skin-check", job=Job(inputs=blobs))

    assert len(pipelines.validate(submit(50), "me").inputs) == 50
    with pytest.raises(FluoroError) as refused:
        pipelines.validate(submit(51), "me")
    assert refused.value.reason == Reason.INVALID_ARGUMENT
    (violation,) = refused.value.violations
    assert (violation.field, "At most 50" in violation.description) == ("job.inputs", True)
