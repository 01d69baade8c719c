"""Pipelines: job templates with a name, a version and typed parameters, from files in YAML.

`load` reads those that ship with Fluoro and those in the operator's folder. A submit that names one
becomes rows by `Pipelines.validate`. docs/pipelines.md says how to write one; ADR 0022 has reasons.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final, NoReturn

from fluoro.v1 import job_service_pb2
from fluoro.v1.pipeline_service_pb2 import ListPipelinesRequest, ListPipelinesResponse

from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.ledger import submission
from fluoro_jobs.ledger.paging import cut, page_size, read_token, write_token
from fluoro_jobs.ledger.submission import Submission
from fluoro_jobs.pipelines.documents import MAX_BYTES, BadPipelineError
from fluoro_jobs.pipelines.reading import template
from fluoro_jobs.pipelines.template import Template, field_of

__all__ = ["BadPipelineError", "Pipelines", "Template", "load", "repeat_key", "template"]

MAX_FILES: Final = 1000
"""Most files in the operator's folder."""
SUFFIXES: Final = (".yaml", ".yml")
"""Other files in the folder are left alone."""
_NAME: Final = re.compile(r"pipelines/([a-z][a-z0-9-]{0,62})(?:/versions/([1-9][0-9]{0,8}))?")


class Pipelines:
    """All pipelines of a gateway. They do not change while it runs."""

    def __init__(self, templates: Iterable[Template]) -> None:
        """Templates of one name have different versions."""
        self._all = {(one.id, one.version): one for one in templates}
        # Sorted by version, so the last one that is put under a name is the newest.
        self._newest = {
            one.id: one for one in sorted(self._all.values(), key=lambda one: one.version)
        }

    def __len__(self) -> int:
        return len(self._all)

    def find(self, name: str, field: str) -> Template:
        """The pipeline of a resource name; without a version, the newest.

        FluoroError INVALID_ARGUMENT, about the request's field, if it is not such a name,
        PIPELINE_NOT_FOUND if there is none.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            _refuse(field, "Must be pipelines/{id} or pipelines/{id}/versions/{version}.")
        name_alone, version = match.groups()
        found = (
            self._all.get((name_alone, int(version))) if version else self._newest.get(name_alone)
        )
        if found is None:
            text = "There is no such pipeline, or not in this version. ListPipelines has all."
            violation = FieldViolation(field, text)
            raise FluoroError(Reason.PIPELINE_NOT_FOUND, text, [violation], {"pipeline": name})
        return found

    def page(self, request: ListPipelinesRequest) -> ListPipelinesResponse:
        """One page of pipelines, by name and from the newest version down.

        FluoroError INVALID_ARGUMENT for a page_size or page_token that does not fit.
        """
        limit, key = page_size(request), read_token(request, str, int)
        # Newest first means that versions descend; a negative number lets both parts ascend.
        start = (str(key[0]), -int(key[1])) if key else ("", 0)
        chosen = (self._all if request.all_versions else self._newest).values()
        ordered = sorted((one.id, -one.version) for one in chosen)
        # The place stands for rows that were looked at, as `cut` wants it. Nothing is filtered, so
        # no page ends early.
        rows = ((*one, place) for place, one in enumerate(o for o in ordered if o >= start))
        found, following = cut(
            rows, limit, lambda row: self._all[row[0], -row[1]].as_proto(with_steps=False)
        )
        return ListPipelinesResponse(
            pipelines=found,
            next_page_token=write_token(request, [following[0], -following[1]])
            if following
            else "",
        )

    def validate(self, request: job_service_pb2.SubmitJobRequest, owner: str) -> Submission:
        """Does `submission.validate`, for a request that may name a pipeline.

        FluoroError as from there and from `find` and `Template.read`.
        """
        if not request.pipeline:
            # Parameters without a pipeline are a mistake that would otherwise do nothing, in
            # silence.
            if request.parameters.fields:
                _refuse("parameters", "They are a pipeline's; name one, or leave them out.")
            return submission.validate(request, owner)
        chosen = self.find(request.pipeline, "pipeline")
        if request.job.steps:
            _refuse("job.steps", "Leave them out: the pipeline has them.")
        if chosen.max_inputs and len(request.job.inputs) > chosen.max_inputs:
            _refuse("job.inputs", f"At most {chosen.max_inputs} for {chosen.name}.")
        steps = chosen.steps(chosen.read(request.parameters))
        sha256 = _digest(request)
        request.job.steps.extend(steps)
        try:
            checked = submission.validate(request, owner)
        except FluoroError as error:
            request.job.ClearField("steps")  # it is as it was sent, for `repeat_key`
            _in_callers_words(error, chosen)
            raise
        return replace(checked, sha256=sha256, pipeline=chosen.id, pipeline_version=chosen.version)


def load(folder: str = "") -> Pipelines:
    """Those that ship with Fluoro, and those in the operator's folder; "" for none.

    BadPipelineError with a line for each file that cannot be used.
    """
    found: dict[tuple[str, int], tuple[Template, str]] = {}
    faults: list[str] = []
    shipped = files("fluoro_jobs") / "pipelines" / "shipped"
    for file, called in (*files_in(shipped, "shipped"), *_operators(folder)):
        try:
            read = template(_text(file, called), called)
        except BadPipelineError as error:
            # All files are looked at, so that an operator sees every fault at once.
            faults.append(str(error))
            continue
        earlier, where = found.setdefault((read.id, read.version), (read, called))
        # The same file may be mounted twice. Two contents under one version would make jobs that
        # cannot be told apart.
        if earlier.content != read.content:
            faults.append(
                f"{called}:1: version {read.version} of {read.id} is in {where} with other "
                f"content; give this one a higher version"
            )
    if faults:
        raise BadPipelineError("\n".join(["there are pipelines that it cannot use:", *faults]))
    return Pipelines(one for one, _ in found.values())


def _operators(folder: str) -> Iterator[tuple[Traversable, str]]:
    if not folder:
        return
    path = Path(folder)
    # A missing folder is a slip in a setting. To start without its pipelines would hide that until
    # a submit fails.
    if not path.is_dir():
        raise BadPipelineError(
            f"{folder} is not a folder. Set FLUORO_PIPELINES_FOLDER to one with pipelines in YAML, "
            "or leave it out."
        )
    yield from files_in(path, folder)


def files_in(folder: Traversable, called: str) -> list[tuple[Traversable, str]]:
    """Its YAML files by name. Not those that begin with a dot: a mounted ConfigMap has such."""
    found = sorted(
        (one for one in folder.iterdir() if one.name.endswith(SUFFIXES) and one.name[0] != "."),
        key=lambda one: one.name,
    )
    if len(found) > MAX_FILES:
        raise BadPipelineError(f"{called} has {len(found)} pipelines; {MAX_FILES} are the most")
    return [(one, f"{called}/{one.name}") for one in found]


def _text(file: Traversable, called: str) -> bytes:
    try:
        with file.open("rb") as opened:
            # One byte more than allowed is enough to know that it is too large.
            return opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadPipelineError(f"{called}:1: cannot be read: {error.strerror}") from error


def repeat_key(request: job_service_pb2.SubmitJobRequest) -> tuple[str, bytes] | None:
    """By which the job of an earlier submit of the same request is found, though it is refused now.

    What one version of a pipeline took, the next may refuse. None if no such job can be.
    """
    name = request.request_id
    if not request.pipeline or not name or not name.isprintable() or request.validate_only:
        return None
    return name, _digest(request)


def _digest(request: job_service_pb2.SubmitJobRequest) -> bytes:
    """Of the request as it was sent: the same again is the same job, whatever is newest by then."""
    asked = job_service_pb2.SubmitJobRequest(
        pipeline=request.pipeline, parameters=request.parameters
    )
    submission.clear_output_only(request.job)
    asked.job.CopyFrom(request.job)
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).digest()


def _in_callers_words(error: FluoroError, chosen: Template) -> None:
    """Tells of the parameter what is wrong with a field of a step that it set."""
    told = []
    for bad in error.violations:
        parameter = chosen.markers.get(bad.field)
        told.append(FieldViolation(field_of(parameter), bad.description) if parameter else bad)
        # The message begins with the field, so it has to name the parameter too.
        error.message = error.message.replace(f"{bad.field}:", f"{told[-1].field}:")
    error.violations = told


def _refuse(field: str, description: str) -> NoReturn:
    raise FluoroError(
        Reason.INVALID_ARGUMENT, f"{field}: {description}", [FieldViolation(field, description)]
    )
