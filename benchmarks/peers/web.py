"""The habit that the gateway replaces: a FastAPI endpoint that hands the body to Celery.

`uvicorn peers.web:app`.
"""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from peers.stock_celery import noop

app = FastAPI()


class SubmitJob(BaseModel):
    """The body: SubmitJobRequest as JSON."""

    job: dict[str, Any]
    requestId: str  # noqa: N815 - its name in protobuf's JSON


@app.post("/jobs")
def submit(body: SubmitJob) -> dict[str, str]:
    """As most people write it: FastAPI runs it in a thread."""
    return {"id": noop.delay(body.model_dump()).id}


@app.post("/jobs-async")
async def submit_on_loop(body: SubmitJob) -> dict[str, str]:
    """Blocks the event loop while it talks to Redis, which is wrong and fast."""
    return {"id": noop.delay(body.model_dump()).id}
