"""What steps work on: the nearest that they can read, and never originals by accident."""

from dataclasses import replace

import pytest
from fluoro.v1 import job_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ledger.sources import Source, Wired, wire
from fluoro_jobs.operations import BY_FIELD, Operation
from hypothesis import given, settings
from hypothesis import strategies as st

INSPECT, RENDER = BY_FIELD["inspect_dicom"], BY_FIELD["render_dicom"]
ANALYZE, REPORT = BY_FIELD["analyze_images"], BY_FIELD["export_report"]
EXPORT, STORE = BY_FIELD["export_dicom"], BY_FIELD["store_dicomweb"]
UNPACK = replace(INSPECT, field="unpack", reads=("input",), leaves=("member", "members"))
DEIDENTIFY = replace(INSPECT, field="deidentify", leaves=("instance",), deidentifies=True)
FETCH = replace(INSPECT, field="fetch", reads=(), leaves=("instance",), brings_originals=True)
COMPARE = replace(
    ANALYZE, field="compare", reads=("pixels", "label-map"), leaves=("picture",), groups=True
)

Input = job_pb2.StepInput


def wired(*steps: tuple[str, Operation, list[str]], **more: list[Input] | bool) -> dict[str, Wired]:
    """Steps of a job: name, operation, after.

    more: inputs of a step by its name, or whether it may see everything.
    """
    messages = []
    for name, _, after in steps:
        step = job_pb2.Step(name=name, after=after)
        wish = more.get(name, [])
        if isinstance(wish, bool):
            step.allow_identifiable = wish
        else:
            step.inputs.extend(wish)
        messages.append(step)
    places = wire(messages, [operation for _, operation, _ in steps])
    return dict(zip([name for name, _, _ in steps], places, strict=True))


def refused(*steps: tuple[str, Operation, list[str]], **more: list[Input] | bool) -> FluoroError:
    with pytest.raises(FluoroError) as caught:
        wired(*steps, **more)
    return caught.value


def test_a_step_after_nothing_that_it_can_read_works_on_the_jobs_inputs() -> None:
    job = wired(("inspect", INSPECT, []), ("render", RENDER, ["inspect"]))
    assert job["inspect"].sources == job["render"].sources == (Source(None, "input"),)


def test_a_step_takes_its_files_and_what_steps_made_beside_them() -> None:
    job = wired(
        ("clean", DEIDENTIFY, []),
        ("render", RENDER, ["clean"]),
        ("analyze", ANALYZE, ["render"]),
        ("export", EXPORT, ["analyze"]),
    )
    assert job["export"].sources == (
        Source(0, "instance"),
        Source(2, "label-map"),
        Source(2, "overlay"),
        Source(1, "preview"),
    )


def test_files_of_the_job_stand_beside_what_steps_made_of_them() -> None:
    job = wired(
        ("render", RENDER, []), ("analyze", ANALYZE, ["render"]), ("export", EXPORT, ["analyze"])
    )
    assert job["export"].sources[:2] == (Source(None, "input"), Source(1, "label-map"))
    assert wired(("export", EXPORT, []))["export"].sources == (Source(None, "input"),)


def test_originals_are_not_exported_beside_a_deidentifying_step() -> None:
    error = refused(("clean", DEIDENTIFY, []), ("export", EXPORT, []))
    assert error.reason == Reason.STEP_SEES_IDENTIFIABLE


def test_a_step_works_on_the_nearest_that_it_can_read() -> None:
    job = wired(
        ("unpack", UNPACK, []),
        ("inspect", INSPECT, ["unpack"]),
        ("render", RENDER, ["inspect"]),
        ("analyze", ANALYZE, ["inspect", "render"]),
        ("report", REPORT, ["inspect", "render", "analyze"]),
    )
    assert {name: place.sources for name, place in job.items()} == {
        "unpack": (Source(None, "input"),),
        "inspect": (Source(0, "member"),),
        "render": (Source(0, "member"),),
        "analyze": (Source(2, "pixels"),),
        "report": (),
    }


def test_what_a_later_step_made_takes_the_place_of_what_it_made_it_of() -> None:
    job = wired(
        ("fetch", FETCH, []),
        ("clean", DEIDENTIFY, ["fetch"]),
        ("render", RENDER, ["fetch", "clean"]),
        render=True,
    )
    assert job["render"].sources == (Source(1, "instance"),)


def test_several_nearest_steps_are_all_sources_in_order_of_steps_and_roles() -> None:
    job = wired(
        ("bone", RENDER, []),
        ("lung", RENDER, []),
        ("map", ANALYZE, ["lung"]),
        ("compare", COMPARE, ["map", "bone"]),
    )
    assert job["compare"].sources == (Source(0, "pixels"), Source(2, "label-map"))


def test_a_step_waits_for_the_steps_that_its_inputs_name() -> None:
    job = wired(
        ("compare", COMPARE, []),
        ("render", RENDER, []),
        ("map", ANALYZE, ["render"]),
        compare=[Input(step="render", role="pixels"), Input(step="map", group=True)],
    )
    assert job["compare"] == Wired(
        [1, 2], (Source(1, "pixels"), Source(2, "label-map", group=True)), named=True
    )


def test_a_step_may_name_the_jobs_inputs_beside_those_of_a_step() -> None:
    job = wired(
        ("unpack", UNPACK, []),
        ("render", RENDER, ["unpack"]),
        render=[Input(), Input(step="unpack"), Input(role="input")],
    )
    assert job["render"].sources == (Source(None, "input"), Source(0, "member"))


@pytest.mark.parametrize(
    ("named", "field", "told"),
    [
        (Input(step="inspect"), "step", "Step inspect leaves `metadata`; render_dicom reads"),
        (Input(step="unpack", role="members"), "role", "leaves `member` or `members`"),
        (Input(step="unpack", role="nobody^knows"), "role", "reads `input` or `instance`"),
        (Input(role="member"), "role", "The job's inputs have `input`"),
    ],
)
def test_a_source_that_a_step_cannot_read_is_refused_with_what_there_is(
    named: Input, field: str, told: str
) -> None:
    error = refused(
        ("inspect", INSPECT, []), ("unpack", UNPACK, []), ("render", RENDER, []), render=[named]
    )
    assert error.reason == Reason.STEP_INPUT_MISMATCH
    assert error.violations[0].field == f"job.steps[2].inputs[0].{field}"
    assert told in error.violations[0].description
    assert "nobody" not in str(error) + error.violations[0].description


@pytest.mark.parametrize("operation", [INSPECT, RENDER, UNPACK])
def test_a_group_is_refused_where_an_operation_would_look_at_one_part_of_it(
    operation: Operation,
) -> None:
    grouped = [Input(role="input", group=True)]
    error = refused(("one", operation, []), one=grouped)
    assert error.reason == Reason.STEP_INPUT_MISMATCH
    assert error.violations[0].field == "job.steps[0].inputs[0].group"
    assert error.violations[0].description.startswith("Leave it out: ")
    job = wired(("one", replace(operation, groups=True), []), one=grouped)
    assert job["one"].sources == (Source(None, "input", group=True),)


def test_a_report_reads_results_and_takes_no_inputs() -> None:
    error = refused(
        ("inspect", INSPECT, []), ("report", REPORT, []), report=[Input(step="inspect")]
    )
    assert "export_report reads no files" in error.violations[0].description


def test_a_step_with_nothing_to_work_on_is_refused_with_the_roles_it_reads() -> None:
    error = refused(("inspect", INSPECT, []), ("analyze", ANALYZE, ["inspect"]))
    assert error.reason == Reason.STEP_INPUT_MISSING
    assert error.violations[0].field == "job.steps[1].after"
    assert "`pixels`" in error.violations[0].description


def test_steps_that_take_each_others_artifacts_are_a_circle() -> None:
    steps = [("a", DEIDENTIFY, []), ("b", DEIDENTIFY, [])]
    error = refused(*steps, a=[Input(step="b")], b=[Input(step="a")])
    assert error.reason == Reason.STEP_GRAPH_CYCLE


def test_an_input_of_a_step_that_is_not_in_the_job_is_refused() -> None:
    error = refused(("render", RENDER, []), render=[Input(step="gone")])
    assert (error.reason, error.violations[0].field) == (
        Reason.STEP_UNKNOWN,
        "job.steps[0].inputs[0].step",
    )


CLEAN_FIRST = [
    ("clean", DEIDENTIFY, []),
    ("render", RENDER, ["clean"]),
    ("analyze", ANALYZE, ["render"]),
    ("report", REPORT, ["render", "analyze"]),
]


def test_steps_after_a_de_identifying_one_work_on_what_it_left() -> None:
    job = wired(*CLEAN_FIRST)
    assert job["render"].sources == (Source(0, "instance"),)


def test_steps_that_lead_to_a_de_identifying_one_may_see_the_originals() -> None:
    job = wired(("unpack", UNPACK, []), ("clean", DEIDENTIFY, ["unpack"]), ("r", RENDER, ["clean"]))
    assert job["r"].sources == (Source(1, "instance"),)


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([("clean", DEIDENTIFY, []), ("r", RENDER, [])], "the job's inputs"),
        ([("i", INSPECT, []), ("clean", DEIDENTIFY, ["i"]), ("r", REPORT, ["i"])], "step i left"),
        ([("f", FETCH, []), ("clean", DEIDENTIFY, ["f"]), ("r", RENDER, ["f"])], "step f left"),
        (
            [
                ("pixels", RENDER, []),
                ("clean", DEIDENTIFY, ["pixels"]),
                ("model", ANALYZE, ["clean"]),
            ],
            "step pixels left",
        ),
    ],
    ids=[
        "the originals",
        "their results",
        "what was fetched",
        "their pixels, reached through the de-identifying step",
    ],
)
def test_a_step_that_would_see_what_was_not_de_identified_is_refused(
    steps: list[tuple[str, Operation, list[str]]], told: str
) -> None:
    error = refused(*steps)
    assert error.reason == Reason.STEP_SEES_IDENTIFIABLE
    assert told in error.violations[0].description
    assert "(clean)" in error.violations[0].description
    name = steps[-1][0]
    assert error.violations[0].field == f"job.steps[{len(steps) - 1}].inputs"
    assert wired(*steps, **{name: True})


def test_what_is_fetched_may_be_cleaned_and_what_comes_after_that_sees_it_clean() -> None:
    job = wired(("f", FETCH, []), ("clean", DEIDENTIFY, ["f"]), ("r", RENDER, ["clean"]))
    assert job["clean"].sources == (Source(0, "instance"),)
    assert job["r"].sources == (Source(1, "instance"),)
    assert wired(("f", FETCH, []), ("r", RENDER, ["f"]))["r"].sources == (Source(0, "instance"),)


def test_a_step_that_names_the_originals_may_see_them_but_those_after_it_must_say_so_too() -> None:
    steps = [("clean", DEIDENTIFY, []), ("r", RENDER, ["clean"]), ("a", ANALYZE, ["r"])]
    error = refused(*steps, r=[Input()])
    assert error.violations[0].field == "job.steps[2].inputs"
    job = wired(*steps, r=[Input()], a=[Input(step="r")])
    assert job["r"].sources == (Source(None, "input"),)


def test_originals_are_not_stored_elsewhere_before_they_are_cleaned() -> None:
    steps = [("f", FETCH, []), ("store", STORE, ["f"]), ("clean", DEIDENTIFY, ["store"])]
    error = refused(*steps)
    assert error.reason == Reason.STEP_SEES_IDENTIFIABLE
    assert error.violations[0].field == "job.steps[1].inputs"
    assert wired(*steps, store=True)["store"].sources == (Source(0, "instance"),)
    assert wired(("f", FETCH, []), ("clean", DEIDENTIFY, ["f"]), ("store", STORE, ["clean"]))


def test_a_step_that_names_clean_files_still_sees_the_results_of_all_it_comes_after() -> None:
    steps = [("i", INSPECT, []), ("clean", DEIDENTIFY, []), ("r", RENDER, ["i"])]
    error = refused(*steps, i=True, r=[Input(step="clean")])
    assert "step i left" in error.violations[0].description


def test_between_two_de_identifying_steps_nothing_is_seen_unsaid() -> None:
    steps = [
        ("i", INSPECT, []),
        ("first", DEIDENTIFY, ["i"]),
        ("r", RENDER, ["i", "first"]),
        ("second", DEIDENTIFY, ["r"]),
    ]
    error = refused(*steps)
    assert error.reason == Reason.STEP_SEES_IDENTIFIABLE
    assert error.violations[0].field == "job.steps[2].inputs"
    assert wired(*steps, r=True)


def test_a_job_without_a_de_identifying_step_is_free() -> None:
    assert wired(("i", INSPECT, []), ("r", RENDER, ["i"]), ("report", REPORT, ["i", "r"]))


COPY = replace(INSPECT, field="copy", leaves=("instance",))
KINDS = [COPY, COPY, FETCH, DEIDENTIFY, RENDER, ANALYZE, STORE, REPORT]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[job_pb2.Step], list[Operation]]:
    """Any steps in any order, one of them de-identifies, with sources named by chance."""
    operations = draw(st.lists(st.sampled_from(KINDS), max_size=6))
    operations.insert(draw(st.integers(0, len(operations))), DEIDENTIFY)
    steps = []
    for i in range(len(operations)):
        earlier = st.lists(st.sampled_from(range(i)), max_size=3) if i else st.just([])
        step = job_pb2.Step(name=f"s{i}", allow_identifiable=draw(st.integers(0, 9)) == 0)
        step.after.extend(f"s{k}" for k in draw(earlier))
        if draw(st.booleans()):
            names = draw(st.lists(st.sampled_from(["", *(f"s{k}" for k in range(i))]), max_size=2))
            step.inputs.extend(Input(step=name) for name in names)
        steps.append(step)
    shuffled = draw(st.permutations(range(len(steps))))
    return [steps[i] for i in shuffled], [operations[i] for i in shuffled]


@settings(deadline=None)
@given(graphs())
def test_no_step_of_any_graph_sees_identifiable_data_without_having_said_so(
    graph: tuple[list[job_pb2.Step], list[Operation]],
) -> None:
    steps, operations = graph
    try:
        places = wire(steps, operations)
    except FluoroError:
        return
    cleaning = {i for i, operation in enumerate(operations) if operation.deidentifies}
    # Written from the definition, without an order: data flows until nothing changes any more.
    tainted: set[int] = set()
    leading: set[int] = set()
    cleaned: set[int] = set()
    for _ in steps:
        for i, place in enumerate(places):
            if set(place.after) & (cleaning | cleaned):
                cleaned.add(i)
            flows = {source.step for source in place.sources} | set(place.after)
            brought = operations[i].brings_originals
            if i not in cleaning and (brought or None in flows or flows & tainted):
                tainted.add(i)
            if i in cleaning or i in leading:
                leading |= set(place.after)
    preparing = {i for i in leading - cleaned if operations[i].leaves}
    for i in tainted - preparing:
        seen = {source.step for source in places[i].sources} | set(places[i].after)
        dirty = {
            "" if each is None else steps[each].name
            for each in seen
            if each is None or each in tainted
        }
        assert steps[i].allow_identifiable or dirty <= {source.step for source in steps[i].inputs}


@settings(deadline=None)
@given(graphs())
def test_every_source_of_any_graph_is_something_its_step_waits_for_and_can_read(
    graph: tuple[list[job_pb2.Step], list[Operation]],
) -> None:
    steps, operations = graph
    try:
        places = wire(steps, operations)
    except FluoroError:
        return
    for i, place in enumerate(places):
        before: set[int] = set(place.after)
        for _ in steps:
            before |= {k for each in before for k in places[each].after}
        for source in place.sources:
            assert source.role in operations[i].reads
            assert source.step is None or source.step in before
            assert source.step is None or source.role in operations[source.step].leaves
        assert bool(place.sources) == bool(operations[i].reads)
