"""The habit that the gateway replaces: a FastAPI endpoint that hands the body to Celery.

`uvicorn peers.web:app`. Callers bring a JWT, which is checked as FastAPI's own tutorial does, with
PyJWT and the keys of the issuer in memory.
"""

import os
from pathlib import Path
from typing import Annotated, Any

import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

from peers.stock_celery import noop

app = FastAPI()
keys = jwt.PyJWKSet.from_json(Path(os.environ["PEER_FOLDER"], "jwks.json").read_text())


async def owner(shown: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    """Who calls."""
    try:
        key = keys[jwt.get_unverified_header(shown.credentials)["kid"]]
        claims = jwt.decode(
            shown.credentials,
            key,
            algorithms=["RS256"],
            audience="fluoro",
            issuer="https://issuer.example",
        )
    except (jwt.PyJWTError, KeyError) as error:
        raise HTTPException(401) from error
    return str(claims["sub"])


Owner = Annotated[str, Depends(owner)]


class SubmitJob(BaseModel):
    """The body: SubmitJobRequest as JSON."""

    job: dict[str, Any]
    requestId: str  # noqa: N815 - its name in protobuf's JSON


@app.post("/jobs")
def submit(body: SubmitJob, owner: Owner) -> dict[str, str]:
    """As most people write it: FastAPI runs it in a thread."""
    return {"id": noop.delay(body.model_dump() | {"owner": owner}).id}


@app.post("/jobs-async")
async def submit_on_loop(body: SubmitJob, owner: Owner) -> dict[str, str]:
    """Blocks the event loop while it talks to Redis, which is wrong and fast."""
    return {"id": noop.delay(body.model_dump() | {"owner": owner}).id}
