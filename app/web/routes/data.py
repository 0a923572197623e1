"""Data in and out: counts, import, export."""

from collections.abc import Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, File, UploadFile
from starlette.responses import Response, StreamingResponse

from app.store import exports, imports, judgments, prompts
from app.store.imports import Kind
from app.web.access import Policy, Visit, may
from app.web.forms import FormModel
from app.web.pages import page, wants_page

router = APIRouter(prefix="/p/{slug}/data")
Researcher = Annotated[Visit, may(Policy.RESEARCHER)]
Admin = Annotated[Visit, may(Policy.ADMIN)]
LARGEST_FILE = 1 << 30
EXPORTS = {"trl": exports.export_trl, "full": exports.export_full}


class ImportForm(FormModel):
    """A file and what it holds."""

    kind: Kind
    file: UploadFile


@router.get("")
def data(visit: Researcher) -> Response:
    """What is there, how to bring more, how to take it away."""
    return page(visit, "data/data.html", here="data", report=None, **counts(visit))


@router.post("/import", max_body_size=LARGEST_FILE)
def import_file(visit: Admin, form: Annotated[ImportForm, File()]) -> Response:
    """Import a file, whole or not at all."""
    name = (form.file.filename or "upload")[:200]
    report = imports.import_jsonl(visit.s, visit.project.id, form.kind, form.file.file, visit.account.id, name)
    if wants_page(visit.request):
        return page(visit, "data/data.html", here="data", report=report, name=name, **counts(visit))
    return page(visit, "data/_report.html", report=report, name=name)


@router.get("/judgments.jsonl")
def export(visit: Researcher, format: Literal["trl", "full"] = "trl") -> Response:
    """The judgments as JSONL, streamed on a session of its own: the request's is closed when the answer starts."""
    sessions, project_id = visit.request.app.state.sessions, visit.project.id

    def lines() -> Iterator[bytes]:
        with sessions() as s:
            yield from EXPORTS[format](s, project_id)

    name = f"{visit.project.slug}-{format}.jsonl"
    return StreamingResponse(
        lines(),
        media_type="application/jsonl",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def counts(visit: Visit) -> dict[str, object]:
    """The numbers of the page."""
    return {
        "prompts": prompts.counts(visit.s, visit.project.id),
        "summary": judgments.summary(visit.s, visit.project.id),
    }
