"""Training runs: start, watch, cancel, resume."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query
from sqlalchemy import select
from starlette.responses import JSONResponse, Response

from app.core.vocabulary import LIVE_STATUSES, RunKind
from app.store import checkpoints, runs
from app.store.models import Prompt, Run, RunSample, Snapshot
from app.web.access import Policy, Visit, may
from app.web.curves import curves_of
from app.web.forms import FormModel, StartForm, TrainForm, config_of, settings_of
from app.web.pages import go, page
from app.web.results import results

router = APIRouter(prefix="/p/{slug}")
Researcher = Annotated[Visit, may(Policy.RESEARCHER)]
Admin = Annotated[Visit, may(Policy.ADMIN)]


@router.get("/runs")
def listing(visit: Researcher) -> Response:
    """The runs, newest first."""
    return page(visit, "runs/runs.html", here="runs", runs=runs.runs_of(visit.s, visit.project.id), names=names(visit))


@router.get("/runs/start/{kind}")
def form(visit: Admin, kind: RunKind) -> Response:
    """The form for one kind of run, drawn from its configuration's fields."""
    basic, advanced = settings_of(kind)
    return page(
        visit,
        "runs/start.html",
        here="runs",
        kind=kind,
        basic=basic,
        advanced=advanced,
        policies=checkpoints.policies(visit.s, visit.project.id),
        reward_models=checkpoints.reward_models(visit.s, visit.project.id),
    )


@router.post("/runs")
def start(visit: Admin, form: Annotated[StartForm, Form()]) -> Response:
    """Put a run into the queue."""
    run = runs.enqueue(
        visit.s,
        visit.project.id,
        form.kind,
        visit.account.id,
        config=config_of(form.kind, form.model_extra or {}),
        seed=form.seed,
        policy_id=form.policy_id,
        reward_model_id=form.reward_model_id,
    )
    return go(visit.request, f"/p/{visit.project.slug}/runs/{run.id}")


@router.post("/train")
def train(visit: Admin, form: Annotated[TrainForm, Form()]) -> Response:
    """A reward model, then PPO on it."""
    first, _ = runs.enqueue_reward_then_ppo(visit.s, visit.project.id, visit.account.id, seed=form.seed)
    return go(visit.request, f"/p/{visit.project.slug}/runs/{first.id}")


@router.get("/runs/{run_id}")
def detail(visit: Researcher, run_id: uuid.UUID) -> Response:
    """One run: how it goes, what it made, from what."""
    run = runs.run(visit.s, visit.project.id, run_id)
    snapshot = visit.s.get(Snapshot, run.snapshot_id) if run.snapshot_id else None
    after = runs.run(visit.s, visit.project.id, run.after_run_id) if run.after_run_id else None
    recent = runs.runs_of(visit.s, visit.project.id)
    follower = next((one for one in recent if one.after_run_id == run.id), None)
    lineage = {"snapshot": snapshot, "after": after, "follower": follower}
    context = {"curves": curves_of(run.kind), "names": names(visit)} | lineage
    return page(
        visit, "runs/run.html", here="runs", **(live_context(visit, run) | sample_context(visit, run) | context)
    )


@router.get("/runs/{run_id}/live")
def live(visit: Researcher, run_id: uuid.UUID, status: str = "") -> Response:
    """How it goes right now; when the state has changed, the whole page is due."""
    run = runs.run(visit.s, visit.project.id, run_id)
    if status and run.status != status:
        return Response(headers={"HX-Refresh": "true"})
    return page(visit, "runs/_live.html", **live_context(visit, run))


@router.get("/runs/{run_id}/samples")
def samples(visit: Researcher, run_id: uuid.UUID) -> Response:
    """What the policy in training answers by now."""
    run = runs.run(visit.s, visit.project.id, run_id)
    return page(visit, "runs/_samples.html", **sample_context(visit, run))


@router.get("/runs/{run_id}/metrics")
def metrics(visit: Researcher, run_id: uuid.UUID, after: Annotated[int, Query(ge=0, lt=2**63)] = 0) -> JSONResponse:
    """The logged steps after a row, for the curves."""
    run = runs.run(visit.s, visit.project.id, run_id)
    rows = runs.metrics_after(visit.s, run.id, after)
    return JSONResponse(
        {
            "live": run.status in LIVE_STATUSES,
            "rows": [{"id": row.id, "step": row.step, "phase": row.phase, "values": row.values} for row in rows],
        }
    )


@router.post("/runs/{run_id}/cancel")
def cancel(visit: Admin, run_id: uuid.UUID, form: Annotated[FormModel, Form()]) -> Response:
    """Ask a run to stop at a checkpoint."""
    runs.request_cancel(visit.s, visit.project.id, run_id, visit.account.id)
    return go(visit.request, f"/p/{visit.project.slug}/runs/{run_id}")


@router.post("/runs/{run_id}/resume")
def resume(visit: Admin, run_id: uuid.UUID, form: Annotated[FormModel, Form()]) -> Response:
    """Go on from the newest checkpoint."""
    runs.resume(visit.s, visit.project.id, run_id, visit.account.id)
    return go(visit.request, f"/p/{visit.project.slug}/runs/{run_id}")


def live_context(visit: Visit, run: Run) -> dict[str, Any]:
    """What the moving part of a run's page shows."""
    return {
        "run": run,
        "moving": run.status in LIVE_STATUSES,
        "results": results(run.kind, run.metrics),
    }


def sample_context(visit: Visit, run: Run) -> dict[str, Any]:
    """The same prompts answered at the start and now."""
    samples = first_and_last(visit, runs.samples(visit.s, run.id))
    return {"run": run, "moving": run.status in LIVE_STATUSES, "samples": samples}


def first_and_last(visit: Visit, samples: list[RunSample], at_most: int = 6) -> list[tuple[str, RunSample, RunSample]]:
    """For some prompts of the fixed set: the prompt's text, the answer at the start, and the newest one."""
    by_prompt: dict[str, list[RunSample]] = {}
    for sample in sorted(samples, key=lambda one: one.step):
        by_prompt.setdefault(sample.prompt_id, []).append(sample)
    chosen = list(by_prompt.items())[:at_most]
    texts = prompt_texts(visit, [prompt_id for prompt_id, _ in chosen])
    return [(texts.get(prompt_id, ""), given[0], given[-1]) for prompt_id, given in chosen]


def prompt_texts(visit: Visit, ids: list[str]) -> dict[str, str]:
    """The last user turn of these prompts of this project."""
    wanted = []
    for text in ids:
        try:
            wanted.append(uuid.UUID(text))
        except ValueError:
            continue
    query = select(Prompt).where(Prompt.project_id == visit.project.id, Prompt.id.in_(wanted))
    return {str(prompt.id): prompt.messages[-1]["content"] for prompt in visit.s.scalars(query)}


def names(visit: Visit) -> dict[object, str]:
    """Checkpoint ids as names."""
    s, project = visit.s, visit.project
    return {
        one.id: one.name for one in (*checkpoints.policies(s, project.id), *checkpoints.reward_models(s, project.id))
    }
