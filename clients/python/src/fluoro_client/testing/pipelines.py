"""Pipelines of the fake: those that ship with Fluoro, and those that the test adds."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fluoro.v1 import (
    archive_pb2,
    classify_pb2,
    compare_pb2,
    convert_pb2,
    deidentify_pb2,
    dermoscopy_pb2,
    dicomweb_pb2,
    export_pb2,
    job_pb2,
    job_service_pb2,
    ml_pb2,
    photograph_pb2,
    pipeline_service_pb2,
    slide_pb2,
    visualize_pb2,
)
from fluoro.v1.pipeline_service_pb2 import Pipeline, PipelineParameter
from google.protobuf import json_format
from google.protobuf.message import Message

from fluoro_client.jobs import analyze, inspect, render, report, step
from fluoro_client.testing.faults import RefusalError, invalid

_NAME: Final = re.compile(r"pipelines/([a-z][a-z0-9-]{0,62})(?:/versions/([1-9][0-9]{0,8}))?")

Parameters = Mapping[str, Any]
"""Values by name: strings, floats and bools."""
Steps = Sequence[job_pb2.Step] | Callable[[Parameters], Sequence[job_pb2.Step]]
"""The steps of a pipeline, or what makes them of a caller's parameters."""

KINDS: Final = {
    PipelineParameter.TYPE_STRING: "string_value",
    PipelineParameter.TYPE_NUMBER: "number_value",
    PipelineParameter.TYPE_INTEGER: "number_value",
    PipelineParameter.TYPE_BOOLEAN: "bool_value",
    PipelineParameter.TYPE_ENUM: "string_value",
    PipelineParameter.TYPE_DURATION: "string_value",
}
"""The kind of google.protobuf.Value that a parameter of each type takes."""


@dataclass(frozen=True, slots=True)
class Made:
    """A pipeline, and what its steps are made of."""

    shown: Pipeline
    steps: Steps

    def fill(self, parameters: Parameters) -> Sequence[job_pb2.Step]:
        """The steps of a job."""
        return self.steps(parameters) if callable(self.steps) else self.steps


class Pipelines:
    """Those there are, by id and version."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, int], Made] = {}
        for name, steps in SHIPPED.items():
            self.add(name, steps, 1, [_parameter(one, name) for one in _TAKEN[name]])

    def add(
        self, name: str, steps: Steps, version: int, parameters: Sequence[PipelineParameter]
    ) -> None:
        """A pipeline, in place of one of the same name and version."""
        shown = Pipeline(
            name=f"pipelines/{name}/versions/{version}",
            version=version,
            title=name,
            parameters=parameters,
        )
        made = Made(shown, steps)
        shown.max_inputs = _MOST.get(name, 0)
        shown.steps.extend(made.fill(defaults(shown)))
        self._all[name, version] = made

    def find(self, name: str, field: str) -> Made:
        """RefusalError INVALID_ARGUMENT or PIPELINE_NOT_FOUND."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise invalid(field, "Must be pipelines/{id} or pipelines/{id}/versions/{version}.")
        newest = max((version for known, version in self._all if known == match[1]), default=0)
        key = match[1], int(match[2] or newest)
        if key not in self._all:
            text = "There is no such pipeline, or not in this version. ListPipelines has all."
            raise RefusalError("PIPELINE_NOT_FOUND", text, (field, text))
        return self._all[key]

    def listed(self, *, all_versions: bool) -> list[Pipeline]:
        """By name and from the newest version down, without steps."""
        found: list[Pipeline] = []
        for name, version in sorted(self._all, key=lambda key: (key[0], -key[1])):
            if all_versions or not found or found[-1].name.split("/")[1] != name:
                shown = Pipeline()
                shown.CopyFrom(self._all[name, version].shown)
                shown.ClearField("steps")
                found.append(shown)
        return found

    def filled(self, request: job_service_pb2.SubmitJobRequest) -> tuple[job_pb2.Job, str]:
        """The job with its steps, and the version of the pipeline that they are of, if of one.

        RefusalError if the request does not fit the pipeline.
        """
        job = job_pb2.Job()
        job.CopyFrom(request.job)
        if not request.pipeline:
            if request.parameters.fields:
                raise invalid("parameters", "They are a pipeline's; name one, or leave them out.")
            return job, ""
        made = self.find(request.pipeline, "pipeline")
        if job.steps:
            raise invalid("job.steps", "Leave them out: the pipeline has them.")
        if 0 < made.shown.max_inputs < len(job.inputs):
            raise invalid("job.inputs", f"At most {made.shown.max_inputs} for {made.shown.name}.")
        job.steps.extend(made.fill(_values(made.shown, request)))
        return job, made.shown.name


def _parameter(name: str, pipeline: str) -> PipelineParameter:
    one = PipelineParameter()
    one.CopyFrom(_PARAMETERS[name])
    if name == "model":
        one.default_value.string_value = _MODELS[pipeline]
    return one


def defaults(pipeline: Pipeline) -> dict[str, Any]:
    """Values of the parameters that have a default."""
    return {
        one.name: json_format.MessageToDict(one.default_value)
        for one in pipeline.parameters
        if one.HasField("default_value")
    }


def _values(pipeline: Pipeline, request: job_service_pb2.SubmitJobRequest) -> dict[str, Any]:
    known = {one.name: one for one in pipeline.parameters}
    given = request.parameters.fields
    text = f"{pipeline.name} has no such parameter. It has: {', '.join(known) or 'none'}."
    bad = [(name, text) for name in given if name not in known]
    bad += [(name, "Required.") for name in known if known[name].required and name not in given]
    bad += [
        (name, f"Must be a {KINDS[known[name].type].removesuffix('_value')}.")
        for name, value in given.items()
        if name in known and value.WhichOneof("kind") != KINDS[known[name].type]
    ]
    if bad:
        fields = [(f'parameters["{name}"]', description) for name, description in bad]
        text = f"{len(bad)} bad parameter(s): {fields[0][0]}: {fields[0][1]}"
        raise RefusalError("INVALID_ARGUMENT", text, *fields)
    return {
        **defaults(pipeline),
        **{name: json_format.MessageToDict(value) for name, value in given.items()},
    }


_PARAMETERS: Final = {
    "title": PipelineParameter(name="title", type=PipelineParameter.TYPE_STRING),
    "window_center": PipelineParameter(name="window_center", type=PipelineParameter.TYPE_NUMBER),
    "window_width": PipelineParameter(name="window_width", type=PipelineParameter.TYPE_NUMBER),
}
_PARAMETERS["title"].default_value.string_value = "Imaging report"
_KEPT: Final = (
    *("clean_descriptors", "retain_device", "retain_institution"),
    *("retain_patient_characteristics", "retain_safe_private"),
)
for _name in (*_KEPT, "mask_faces"):
    _PARAMETERS[_name] = PipelineParameter(name=_name, type=PipelineParameter.TYPE_BOOLEAN)
    _PARAMETERS[_name].default_value.bool_value = False
_PARAMETERS["clean_pixel_data"] = PipelineParameter(
    name="clean_pixel_data", type=PipelineParameter.TYPE_BOOLEAN
)
_PARAMETERS["clean_pixel_data"].default_value.bool_value = True
for _name, _kind, _default in (
    ("project", PipelineParameter.TYPE_STRING, "default"),
    ("tile_model", PipelineParameter.TYPE_STRING, "he-texture"),
    ("dates", PipelineParameter.TYPE_ENUM, "LONGITUDINAL_DATES_UNSPECIFIED"),
    ("shear", PipelineParameter.TYPE_ENUM, "SHEAR_KEEP"),
    ("segmentation_type", PipelineParameter.TYPE_ENUM, "SEGMENTATION_TYPE_UNSPECIFIED"),
):
    _PARAMETERS[_name] = PipelineParameter(name=_name, type=_kind)
    _PARAMETERS[_name].default_value.string_value = _default
for _name in ("destination", "study"):
    _PARAMETERS[_name] = PipelineParameter(
        name=_name, type=PipelineParameter.TYPE_STRING, required=True
    )
_PARAMETERS["model"] = PipelineParameter(name="model", type=PipelineParameter.TYPE_STRING)
_MODELS: Final = {
    "comparison": "lesion-outline",
    "mr-brain-mask": "deepbrain",
    "visualization": "lesion-presence",
}
"""The model that a pipeline takes by default."""
_PARAMETERS["embedding_model"] = PipelineParameter(
    name="embedding_model", type=PipelineParameter.TYPE_STRING
)
_PARAMETERS["cells"] = PipelineParameter(name="cells", type=PipelineParameter.TYPE_INTEGER)
_PARAMETERS["microns_per_pixel"] = PipelineParameter(
    name="microns_per_pixel", type=PipelineParameter.TYPE_NUMBER
)
_PARAMETERS["least_probability"] = PipelineParameter(
    name="least_probability", type=PipelineParameter.TYPE_NUMBER
)
_PARAMETERS["least_probability"].default_value.number_value = 0.5
_PARAMETERS["mm_per_pixel"] = PipelineParameter(
    name="mm_per_pixel", type=PipelineParameter.TYPE_NUMBER
)
_CLASSIFIED: Final = ("title", "least_probability")
_STORED: Final = ("destination", "project", "dates", "clean_pixel_data")

_TAKEN: Final[dict[str, Sequence[str]]] = {
    "archive-report": ("title",),
    "batch-skin-check": _CLASSIFIED,
    "binary-classify": _CLASSIFIED,
    "burn-classify": ("title",),
    "comparison": ("model", "embedding_model"),
    "ct-tissue": ("title", "window_center", "window_width"),
    "ct-tissue-dicom": ("title", "segmentation_type"),
    "ct-volume": ("project", "shear"),
    "deidentify": ("project", "dates", "clean_pixel_data", *_KEPT),
    "deidentify-and-export": _STORED,
    "dermoscopy": ("title", "mm_per_pixel"),
    "dicom-intake": ("window_center", "window_width"),
    "histopathology": ("tile_model", "microns_per_pixel", "title"),
    "full-classify": _CLASSIFIED,
    "imaging-report": ("title", "window_center", "window_width"),
    "mr-brain-mask": ("title", "model"),
    "photo-archive": ("mask_faces",),
    "photo-intake": ("mask_faces",),
    "study-deidentify-and-export": ("study", *_STORED),
    "visualization": ("model", "cells"),
}
"""The parameters that each pipeline takes."""
_MOST: Final = {"batch-skin-check": 50}
"""Most inputs of a job, where the pipeline sets a limit."""


def _rendered(given: Parameters) -> list[job_pb2.Step]:
    window = given.get("window_center"), given.get("window_width")
    whole = (float(window[0]), float(window[1])) if window[0] and window[1] else None
    return [inspect(), render(after=["inspect"], window=whole)]


def _reported(given: Parameters) -> list[job_pb2.Step]:
    return [*_rendered(given), report(after=["inspect", "render"], title=given["title"])]


def _analyzed(given: Parameters) -> list[job_pb2.Step]:
    return [
        *_rendered(given),
        analyze("ct-tissue", after=["render"]),
        report(after=["inspect", "render", "analyze"], title=given["title"]),
    ]


def _segmented(given: Parameters) -> list[job_pb2.Step]:
    objects = {
        "kinds": ["KIND_SEGMENTATION", "KIND_MEASUREMENTS", "KIND_KEY_IMAGES"],
        "segmentation_type": given["segmentation_type"],
    }
    after = ["render", "analyze"]
    return [
        render(),
        analyze("ct-tissue", after=["render"]),
        report(after=after, title=given["title"]),
        step(json_format.ParseDict(objects, export_pb2.ExportDicom()), "dicom", after=after),
    ]


def _unpacked(given: Parameters) -> list[job_pb2.Step]:
    steps = _reported(given)
    steps[0].after.append("unpack")
    return [step(archive_pb2.UnpackArchive(), "unpack", max_inputs_per_task=1), *steps]


def _deidentified(given: Parameters) -> list[job_pb2.Step]:
    request = json_format.ParseDict(dict(given), deidentify_pb2.DeidentifyDicom())
    rendered = render(after=["deidentify"])
    rendered.ClearField("after")
    rendered.inputs.add(step="deidentify", role="instance")
    told = report(after=["deidentify", "render"], title="De-identification")
    return [step(request, "deidentify"), rendered, told]


def _stored(given: Parameters) -> list[job_pb2.Step]:
    kept = {name: given[name] for name in ("project", "dates", "clean_pixel_data")}
    request = json_format.ParseDict(kept, deidentify_pb2.DeidentifyDicom())
    # A pipeline is shown without the parameters that have no default.
    stored = step(dicomweb_pb2.StoreDicomweb(server=given.get("destination", "")), "store")
    stored.inputs.add(step="deidentify", role="instance")
    return [step(request, "deidentify"), stored]


def _fetched(given: Parameters) -> list[job_pb2.Step]:
    steps = _stored(given)
    steps[0].inputs.add(step="fetch", role="instance")
    request = dicomweb_pb2.FetchDicomweb(references=[given.get("study", "")])
    return [step(request, "fetch"), *steps]


def _converted(given: Parameters) -> list[job_pb2.Step]:
    request = json_format.ParseDict(
        {"nifti": {"shear": given["shear"]}}, convert_pb2.ConvertDicom()
    )
    converted = step(request, "convert")
    converted.inputs.add(step="deidentify", role="instance", group=True)
    return [step(deidentify_pb2.DeidentifyDicom(project=given["project"]), "deidentify"), converted]


def _taken_in(given: Parameters) -> list[job_pb2.Step]:
    request = photograph_pb2.ImportImages(mask_faces=given["mask_faces"])
    return [step(request, "import", max_inputs_per_task=50)]


def _taken_out(given: Parameters) -> list[job_pb2.Step]:
    steps = _taken_in(given)
    steps[0].after.append("unpack")
    return [step(archive_pb2.UnpackArchive(), "unpack", max_inputs_per_task=1), *steps]


def _compared(given: Parameters) -> list[job_pb2.Step]:
    items = ["0", "1"]
    compared = compare_pb2.CompareImages(model=given.get("embedding_model", ""), items=items)
    return [
        step(photograph_pb2.ImportImages(), "import"),
        analyze(given["model"], after=["import"]),
        step(compared, "compare", after=["import"]),
        step(export_pb2.ExportComparison(items=items), "report", after=["import", "analyze"]),
    ]


def _visualized(given: Parameters) -> list[job_pb2.Step]:
    request = visualize_pb2.VisualizeImages(model=given["model"], cells=int(given.get("cells", 0)))
    return [
        step(photograph_pb2.ImportImages(), "import", max_inputs_per_task=50),
        step(request, "visualize", after=["import"], max_inputs_per_task=10),
        report(after=["import", "visualize"]),
    ]


def _brain(given: Parameters) -> list[job_pb2.Step]:
    objects = export_pb2.ExportDicom(kinds=[export_pb2.ExportDicom.KIND_SEGMENTATION])
    return [
        *_rendered(given),
        step(ml_pb2.AnalyzeImages(model=given["model"]), "analyze", after=["render"]),
        report(after=["inspect", "render", "analyze"], title=given["title"]),
        step(objects, "dicom", after=["render", "analyze"]),
    ]


def _of_slides(given: Parameters) -> list[job_pb2.Step]:
    tiles = slide_pb2.TileSlide(microns_per_pixel=float(given.get("microns_per_pixel", 0)))
    model = slide_pb2.AnalyzeSlide(model=given["tile_model"])
    return [
        step(tiles, "tile", max_inputs_per_task=1),
        step(model, "analyze", after=["tile"], max_inputs_per_task=1),
        step(
            export_pb2.ExportReport(title=given["title"], template="histopathology"),
            "report",
            after=["tile", "analyze"],
        ),
    ]


def _classified(*models: str) -> Callable[[Parameters], list[job_pb2.Step]]:
    def steps(given: Parameters) -> list[job_pb2.Step]:
        request = classify_pb2.ClassifyImages(
            models=[classify_pb2.ModelChoice(model=model) for model in models],
            least_probability=given["least_probability"],
        )
        return _photographs(request, "classify", "skin-check", given)

    return steps


def _photographs(
    request: Message, name: str, template: str, given: Parameters
) -> list[job_pb2.Step]:
    told = export_pb2.ExportReport(title=given["title"], template=template)
    return [
        step(photograph_pb2.ImportImages(), "import", max_inputs_per_task=10),
        step(request, name, after=["import"], max_inputs_per_task=10),
        step(told, "report", after=["import", name]),
    ]


def _assessed(given: Parameters) -> list[job_pb2.Step]:
    request = dermoscopy_pb2.AssessDermoscopy(
        outline=classify_pb2.ModelChoice(model="lesion-outline"),
        mm_per_pixel=given.get("mm_per_pixel"),
    )
    return _photographs(request, "assess", "dermoscopy", given)


def _burns(given: Parameters) -> list[job_pb2.Step]:
    request = ml_pb2.AnalyzeImages(model="burn-depth")
    return _photographs(request, "analyze", "burn", given)


_KINDS: Final = _classified("lesion-kind-color", "lesion-kind-texture", "lesion-kind-shape")

SHIPPED: Final[dict[str, Steps]] = {
    "archive-report": _unpacked,
    "batch-skin-check": _KINDS,
    "binary-classify": _classified("lesion-presence"),
    "burn-classify": _burns,
    "comparison": _compared,
    "ct-tissue": _analyzed,
    "ct-tissue-dicom": _segmented,
    "ct-volume": _converted,
    "deidentify": _deidentified,
    "deidentify-and-export": _stored,
    "dermoscopy": _assessed,
    "dicom-intake": _rendered,
    "histopathology": _of_slides,
    "full-classify": _KINDS,
    "imaging-report": _reported,
    "mr-brain-mask": _brain,
    "photo-archive": _taken_out,
    "photo-intake": _taken_in,
    "study-deidentify-and-export": _fetched,
    "visualization": _visualized,
}


def page(
    pipelines: Pipelines, request: pipeline_service_pb2.ListPipelinesRequest
) -> pipeline_service_pb2.ListPipelinesResponse:
    """All of them: a test has few."""
    if request.page_size < 0:
        raise invalid("page_size", "Must not be negative.")
    return pipeline_service_pb2.ListPipelinesResponse(
        pipelines=pipelines.listed(all_versions=request.all_versions)
    )
