"""The guidelines: read, say that one has read them, see what changed, edit, look at old versions."""

from typing import Annotated

from fastapi import APIRouter, Form
from starlette.responses import RedirectResponse, Response

from app.core.errors import Conflict, Invalid, PairwrightError
from app.core.vocabulary import Role
from app.store import guidelines, projects
from app.store.standing import standing
from app.web.access import Policy, Visit, may
from app.web.changes import changes
from app.web.forms import GuidelinesForm, ReadForm
from app.web.pages import STATUS, go, local, page, wants_page

router = APIRouter(prefix="/p/{slug}/guidelines")
Member = Annotated[Visit, may(Policy.MEMBER)]
Annotator = Annotated[Visit, may(Policy.ANNOTATOR)]
Admin = Annotated[Visit, may(Policy.ADMIN)]


@router.get("")
def read(visit: Member, next: str = "") -> Response:
    """What people go by now, and what changed since the version that the reader knows."""
    newest = guidelines.current(visit.s, visit.project.id)
    known = guidelines.read_by(visit.s, visit.project.id, visit.account.id)
    changed = None
    if 0 < known < newest.version:
        changed = changes(guidelines.version(visit.s, visit.project.id, known).body, newest.body)
    works = visit.role is not Role.RESEARCHER
    return page(
        visit,
        "guidelines/guidelines.html",
        here="guidelines",
        shown=newest,
        newest=newest.version,
        known=known,
        changed=changed,
        unread=works and bool(standing(visit.s, visit.project.id, visit.account.id).unread),
        next=next[:500],
        versions=guidelines.versions(visit.s, visit.project.id),
    )


@router.post("/read")
def have_read(visit: Annotator, form: Annotated[ReadForm, Form()]) -> Response:
    """The reader has read a version; back to work."""
    guidelines.mark_read(visit.s, visit.project.id, visit.account.id, form.version)
    return RedirectResponse(local(form.next) if form.next else f"/p/{visit.project.slug}/judge", 303)


@router.get("/edit")
def edit(visit: Admin) -> Response:
    """The current text to change."""
    newest = guidelines.current(visit.s, visit.project.id)
    return edit_page(visit, newest.body, newest.version)


@router.post("")
def save(visit: Admin, form: Annotated[GuidelinesForm, Form()]) -> Response:
    """A new version. Where somebody else saved meanwhile both texts are shown, and nothing is stored."""
    where = (visit.s, visit.project.id)
    try:
        projects.revise_guidelines(*where, form.body, visit.account.id, form.base)
    except Conflict as error:
        theirs = guidelines.current(*where)
        return edit_page(visit, form.body, theirs.version, theirs=theirs, error=error)
    except Invalid as error:
        return edit_page(visit, form.body, form.base, error=error)
    return go(visit.request, f"/p/{visit.project.slug}/guidelines")


@router.post("/preview")
def preview(visit: Admin, form: Annotated[GuidelinesForm, Form()]) -> Response:
    """How a text would look; nothing is stored."""
    if wants_page(visit.request):
        return edit_page(visit, form.body, form.base, previewed=True)
    return page(visit, "guidelines/_preview.html", body=form.body, previewed=True)


@router.get("/{version}")
def old(visit: Member, version: int) -> Response:
    """One version, current or old, and how it differed from the one before."""
    shown = guidelines.version(visit.s, visit.project.id, version)
    changed = None
    if version > 1:
        changed = changes(guidelines.version(visit.s, visit.project.id, version - 1).body, shown.body)
    return page(
        visit,
        "guidelines/version.html",
        here="guidelines",
        shown=shown,
        changed=changed,
        newest=visit.project.guideline_version,
    )


def edit_page(
    visit: Visit,
    body: str,
    base: int,
    theirs: guidelines.Version | None = None,
    error: PairwrightError | None = None,
    previewed: bool = False,
) -> Response:
    """The form with a text in it, and what keeps it from being saved where something does."""
    return page(
        visit,
        "guidelines/edit.html",
        here="guidelines",
        body=body,
        base=base,
        theirs=theirs,
        error=error,
        previewed=previewed,
        status=STATUS[type(error)] if error else 200,
    )
