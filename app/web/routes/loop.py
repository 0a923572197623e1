"""The start, what is being prepared, and the loop itself."""

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import RedirectResponse, Response

from app.core.vocabulary import Role, RunKind
from app.store import accounts, checkpoints, comparisons, judgments, projects, prompts, runs
from app.store.models import Checkpoint, Project, Run
from app.web.access import Policy, Visit, may
from app.web.curves import curves_of
from app.web.loop import State, next_step
from app.web.pages import page, wants_page

router = APIRouter()
SignedIn = Annotated[Visit, may(Policy.SIGNED_IN)]
Member = Annotated[Visit, may(Policy.MEMBER)]
Researcher = Annotated[Visit, may(Policy.RESEARCHER)]


@router.get("/")
def start(visit: SignedIn) -> Response:
    """Straight into the only project; a list where there are several."""
    mine = projects.projects_of(visit.s, visit.account.id)
    if len(mine) == 1:
        return RedirectResponse(home_of(visit, mine[0]), 303)
    owner = accounts.owner(visit.s)
    if not mine and owner is not None and owner.id == visit.account.id:
        return preparing_page(visit)
    return page(visit, "loop/projects.html", projects=[(project, home_of(visit, project)) for project in mine])


@router.get("/preparing")
def preparing(visit: SignedIn) -> Response:
    """What is being made ready before there is a project; leads on to it once there is one."""
    if projects.projects_of(visit.s, visit.account.id):
        onward = RedirectResponse("/", 303)
        return onward if wants_page(visit.request) else Response(headers={"HX-Refresh": "true"})
    return preparing_page(visit)


@router.get("/p/{slug}/preparing")
def preparing_fragment(visit: Member) -> Response:
    """The state of the preparation; leads on once a policy writes."""
    if visit.project.current_policy_id is not None:
        return Response(headers={"HX-Refresh": "true"})
    return page(visit, "loop/_preparing.html", run=starter_run(visit), brings=brings(visit))


@router.get("/p/{slug}")
def home(visit: Researcher) -> Response:
    """The loop with its live numbers and the one next step."""
    if visit.project.current_policy_id is None:
        return preparing_page(visit)
    state = state_of(visit)
    context = {
        "state": state,
        "step": next_step(state),
        "prompts": prompts.counts(visit.s, visit.project.id),
        "names": names(state),
        "since": since(visit),
    }
    return page(visit, "loop/home.html", here="loop", **context)


@router.get("/p/{slug}/loop")
def live_loop(visit: Researcher) -> Response:
    """The numbers and the next step again, for the page that shows them."""
    state = state_of(visit)
    counts = prompts.counts(visit.s, visit.project.id)
    return page(visit, "loop/_loop.html", state=state, step=next_step(state), prompts=counts, names=names(state))


def home_of(visit: Visit, project: Project) -> str:
    """Where this person starts in a project."""
    membership = accounts.membership(visit.s, project.id, visit.account.id)
    judges = membership is not None and membership.role is Role.ANNOTATOR
    return f"/p/{project.slug}/judge" if judges else f"/p/{project.slug}"


def preparing_page(visit: Visit) -> Response:
    """The page that shows what is being prepared and leads on by itself."""
    run = starter_run(visit) if visit.at else None
    return page(
        visit, "loop/preparing.html", here="loop", run=run, brings=brings(visit), curves=curves_of(RunKind.SFT)[:1]
    )


def brings(visit: Visit) -> bool:
    """Whether the first policy is brought from elsewhere, not trained here. With a project it is there already."""
    return visit.at is None and visit.settings.policy is not None


def starter_run(visit: Visit) -> Run | None:
    """The run that trains the starter policy."""
    return next((run for run in runs.runs_of(visit.s, visit.project.id) if run.kind is RunKind.SFT), None)


def state_of(visit: Visit) -> State:
    """Everything that the loop shows."""
    s, project = visit.s, visit.project
    policies, reward_models = checkpoints.policies(s, project.id), checkpoints.reward_models(s, project.id)
    return State(
        base=f"/p/{project.slug}",
        ready=comparisons.ready(s, project.id),
        summary=judgments.summary(s, project.id),
        runs=runs.runs_of(s, project.id, 6),
        policies=policies,
        reward_models=reward_models,
        current=next((policy for policy in policies if policy.id == project.current_policy_id), None),
        promoted=checkpoints.ever_promoted(s, project.id),
        learnt_from=runs.learnt_from(s, project.id),
        heldout_share=project.heldout_share,
        may_train=visit.role is Role.ADMIN,
    )


def names(state: State) -> dict[object, str]:
    """Checkpoint ids as names."""
    shown: list[Checkpoint] = [*state.policies, *state.reward_models]
    return {checkpoint.id: checkpoint.name for checkpoint in shown}


def since(visit: Visit) -> object:
    """When the current policy began to write the pairs."""
    moves = checkpoints.history(visit.s, visit.project.id)
    return moves[0].created_at if moves else None
