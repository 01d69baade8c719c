"""ModelService: says which models the live workers have."""

import re
from collections.abc import Iterable
from typing import Final

from fluoro.v1.model_pb2 import Model
from fluoro.v1.model_service_pb2 import (
    GetModelRequest,
    GetModelResponse,
    ListModelsRequest,
    ListModelsResponse,
)
from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.ledger import paging
from fluoro_jobs.ledger.models import Said, live_models

from gateway import names
from gateway.ledger_calls import LedgerCalls
from gateway.rpc import Call

_NUMBER: Final = r"(?:0|[1-9][0-9]{0,8})"
_NAME: Final = re.compile(
    rf"models/([a-z][a-z0-9-]{{0,62}})(?:/versions/({_NUMBER}\.{_NUMBER}\.{_NUMBER}))?"
)


class Models:
    """The methods of fluoro.v1.ModelService."""

    def __init__(self, calls: LedgerCalls) -> None:
        self._calls = calls

    async def list_models(self, request: ListModelsRequest, call: Call) -> ListModelsResponse:
        """A page of models."""
        size, key = paging.page_size(request), paging.read_token(request, str)
        found = in_order(merged(await self._calls.run_for(call.owner, live_models)))
        # One that is gone since the page before: the list begins anew, and nothing is left out.
        start = next((n for n, model in enumerate(found) if key and model.name == key[0]), 0)
        rows = ((model, place) for place, model in enumerate(found[start:]))
        page, following = paging.cut(rows, size, lambda row: row[0])
        token = paging.write_token(request, [following[0].name]) if following else ""
        return ListModelsResponse(models=page, next_page_token=token)

    async def get_model(self, request: GetModelRequest, call: Call) -> GetModelResponse:
        """One model with its card."""
        match = _NAME.fullmatch(request.name)
        if match is None:
            raise names.invalid(
                "name", "Must be models/{id} or models/{id}/versions/{major}.{minor}.{patch}."
            )
        of_name = in_order(merged(await self._calls.run_for(call.owner, live_models, match[1])))
        # Only a ready model can run a step. Without any, showing one that is not ready is better
        # than nothing.
        ready = [model for model in of_name if model.state == Model.STATE_READY]
        wanted = (
            [model for model in of_name if model.name == request.name]
            if match[2]
            else ready or of_name
        )
        if not wanted:
            text = "No live worker has such a model, or not in this version. ListModels has all."
            raise FluoroError(Reason.MODEL_UNKNOWN, text, [FieldViolation("name", text)])
        return GetModelResponse(model=wanted[0])


def merged(said: Iterable[Said]) -> list[Model]:
    """One entry per version, from what workers say of it.

    Where they differ, the words of those that serve it count, of these of the most.
    """
    found: dict[str, Model] = {}
    ranked = sorted(said, key=lambda one: (one.about.state, -one.workers))
    for workers, about in ranked:
        model = found.setdefault(about.name, about)
        for deployment in about.deployments:
            deployment.workers = workers
        if model is not about:
            model.deployments.extend(about.deployments)
    return list(found.values())


def in_order(models: Iterable[Model]) -> list[Model]:
    """By id, and from the newest version down."""

    def key(model: Model) -> tuple[str, list[int]]:
        _, name, _, version = model.name.split("/")
        return name, [-int(number) for number in version.split(".")]

    return sorted(models, key=key)
