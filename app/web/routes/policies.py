"""Policies and reward models: where they come from, which one writes the pairs, promote and roll back."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Form
from starlette.responses import Response

from app.store import checkpoints, comparisons, runs
from app.web.access import Policy, Visit, may
from app.web.forms import FormModel
from app.web.pages import go, page

router = APIRouter(prefix="/p/{slug}/policies")
Researcher = Annotated[Visit, may(Policy.RESEARCHER)]
Admin = Annotated[Visit, may(Policy.ADMIN)]


@router.get("")
def listing(visit: Researcher) -> Response:
    """Every policy with its lineage, figures and dropped pairs; every reward model."""
    s, project = visit.s, visit.project
    policies, reward_models = checkpoints.policies(s, project.id), checkpoints.reward_models(s, project.id)
    return page(
        visit,
        "policies/policies.html",
        here="policies",
        policies=policies,
        reward_models=reward_models,
        names={one.id: one.name for one in (*policies, *reward_models)},
        runs={run.id: run for run in runs.runs_of(s, project.id, 200)},
        dropped=comparisons.dropped(s, project.id),
        history=checkpoints.history(s, project.id),
        previous=checkpoints.previous(s, project.id),
    )


@router.post("/rollback")
def roll_back(visit: Admin, form: Annotated[FormModel, Form()]) -> Response:
    """Back to the policy before the last promotion."""
    checkpoints.roll_back(visit.s, visit.project.id, visit.account.id)
    return go(visit.request, f"/p/{visit.project.slug}/policies")


@router.post("/{checkpoint_id}/promote")
def promote(visit: Admin, checkpoint_id: uuid.UUID, form: Annotated[FormModel, Form()]) -> Response:
    """Let this policy write the next pairs."""
    checkpoints.promote(visit.s, visit.project.id, checkpoint_id, visit.account.id)
    return go(visit.request, f"/p/{visit.project.slug}")
