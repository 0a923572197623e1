"""Whether the process lives, and whether it can do its work."""

import shutil
from typing import Annotated

from fastapi import APIRouter
from sqlalchemy import text
from starlette.responses import JSONResponse

from app.core.errors import Unavailable
from app.store import migrate
from app.web.access import Policy, Visit, may

router = APIRouter()
LEAST_FREE = 200 << 20


@router.get("/livez")
def livez(visit: Annotated[Visit, may(Policy.PUBLIC)]) -> JSONResponse:
    """Alive: touches nothing."""
    return JSONResponse({"status": "alive"})


@router.get("/readyz")
def readyz(visit: Annotated[Visit, may(Policy.PUBLIC)]) -> JSONResponse:
    """Ready: the database answers, its schema is this code's, the disk has room."""
    visit.s.execute(text("SELECT 1"))
    engine = visit.request.app.state.engine
    schema = migrate.state(engine.url.render_as_string(hide_password=False))
    if schema != "current":
        raise Unavailable(
            f"The database's schema is {schema}.", "Run `pairwright migrate`, or update this installation."
        )
    if shutil.disk_usage(visit.settings.home).free < LEAST_FREE:
        raise Unavailable("The disk is nearly full.", "Free some space under the data folder.")
    return JSONResponse({"status": "ready"})
