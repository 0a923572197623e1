"""A furnished project, for browser tests and screenshots: people, letters to compare, judgments, runs with curves."""

import math
import random
import uuid
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.core.records import Message, Progress
from app.core.vocabulary import CheckpointKind, FinishReason, Role, RunKind, RunStatus, Verdict
from app.store import accounts, checkpoints, claims, comparisons, judgments, projects, prompts, runs
from app.store.comparisons import SampledCompletion
from app.store.models import Account, AccountKind, Checkpoint, Project, Prompt, new_id

OPENERS = (
    "Hello, my {item} {fault}. Order {order}.",
    "Good morning. The {item} I bought {fault}; the order was {order}.",
)
ITEMS = ("kettle", "lamp", "toaster", "desk fan", "radio", "blender", "doorbell", "coffee grinder")
FAULTS = (
    ("arrived with a crack in it", "A replacement leaves our warehouse on Tuesday, and you can keep the broken one"),
    ("never arrived", "I have asked the carrier to trace the parcel, and you will hear from me by tomorrow noon"),
    ("makes a loud noise", "Please do not use it any more; a courier will collect it on Friday and bring a new one"),
    ("came in the wrong colour", "I have put the right one aside for you, and the return label is attached"),
)
POOR = (
    "Dear customer, we apologise for the trouble. We apologise for the trouble. Our company has sold many things for "
    "many years. Someone may get back to you.\n\nBest wishes, the help centre.",
    "Thanks for writing. Have you tried the help pages? Most questions are answered there, and yours may well be one "
    "of them. If not, write again.",
    "That is not our fault. The carrier is responsible for whatever happens on the way, as our terms say.",
)


@dataclass
class Stage:
    """What was put there."""

    project: Project
    policy: Checkpoint
    owner: Account
    annotators: list[Account]
    researcher: Account


def letters(n: int) -> list[tuple[str, str, str]]:
    """n prompts, each with a good and a poor reply."""
    rows = []
    for i in range(n):
        item, (fault, help_) = ITEMS[i % len(ITEMS)], FAULTS[(i // 3) % len(FAULTS)]
        order = str(4312 + 37 * i)
        prompt = OPENERS[i % len(OPENERS)].format(item=item, fault=fault, order=order)
        good = (
            f"Hello, I am sorry about the {item}. I have order {order} in front of me. {help_}.\n\n"
            "Kind regards, the support team."
        )
        rows.append((prompt, good, POOR[i % len(POOR)]))
    return rows


def person(s: Session, name: str, project: Project | None = None, role: Role = Role.ANNOTATOR) -> Account:
    """An account that signs in by `accounts.open_session`: hashing a password would only take time."""
    account = Account(id=new_id(), kind=AccountKind.PERSON, username=name, username_key=name.lower(), password_hash="-")
    s.add(account)
    s.flush()
    if project is not None:
        accounts.join(s, project.id, account.id, role)
    return account


def furnish(s: Session, pairs: int = 12, password: str = "a quiet green page") -> Stage:
    """An owner with a password, a project with a current policy and a pool of pairs, one person of each role."""
    token = accounts.issue_setup_token(s)
    assert token is not None
    owner = accounts.create_owner(s, token, "ada", password)
    guidelines = (
        "Prefer the reply that you would rather receive.\n\nIt names the right item and the right order, says what "
        "happens next, and is friendly without many words. Of two that do so, prefer the shorter."
    )
    project = projects.create_project(s, "support-replies", "Support replies", guidelines=guidelines, by=owner.id)
    policy = register(s, project, CheckpointKind.POLICY, None, None, {"heldout_nll": 0.61, "perplexity": 1.84})
    checkpoints.promote(s, project.id, policy.id, None)
    annotators = [person(s, name, project) for name in ("grace", "alan", "edsger")]
    researcher = person(s, "barbara", project, Role.RESEARCHER)
    fill(s, project, policy, pairs)
    return Stage(project, policy, owner, annotators, researcher)


def register(
    s: Session,
    project: Project,
    kind: CheckpointKind,
    run_id: uuid.UUID | None,
    parent: Checkpoint | None,
    metrics: dict[str, object],
) -> Checkpoint:
    """A checkpoint without files."""
    parent_id = parent.id if parent else None
    return checkpoints.register(s, project.id, kind, run_id, parent_id, str(uuid.uuid4()), {"w": "00" * 32}, metrics)


def fill(
    s: Session, project: Project, policy: Checkpoint, pairs: int, texts: list[tuple[str, str, str]] | None = None
) -> None:
    """Pairs for the pool, good and poor in either canonical position."""
    rows = texts or letters(pairs)
    conversations: list[list[Message]] = [[{"role": "user", "content": prompt}] for prompt, _, _ in rows]
    prompts.add_prompts(s, project, conversations, "stage")
    known = {p.messages[-1]["content"]: p.id for p in s.query(Prompt).filter_by(project_id=project.id)}
    for i, (prompt, good, poor) in enumerate(rows):
        answers = [good, poor] if i % 2 else [poor, good]
        answers += [f"{POOR[j % 3]} ({j})" for j in range(2, project.answers)]
        comparisons.add_sampled_pair(s, project, known[prompt], [sampled(policy, text, i) for text in answers])


def sampled(policy: Checkpoint, text: str, seed: int) -> SampledCompletion:
    """An answer of this policy."""
    return SampledCompletion(
        text=text,
        checkpoint_id=policy.id,
        seed=seed,
        temperature=1.0,
        top_p=1.0,
        max_tokens=96,
        chat_template_hash="ab" * 32,
        finish_reason=FinishReason.STOP,
    )


def judge_all(s: Session, stage: Stage, annotator: Account, share_right: float = 0.85, at_most: int = 1000) -> int:
    """This person judges whatever they are handed, mostly in favour of the reply that names an order."""
    dice, done = random.Random(annotator.username), 0
    while done < at_most and (tasks := claims.claim(s, stage.project.id, annotator.id, 1)):
        task = tasks[0]
        better = 0 if "order" in task.answers[0] and "front of me" in task.answers[0] else 1
        side = better if dice.random() < share_right else 1 - better
        verdict = [Verdict.LEFT, Verdict.RIGHT][side] if dice.random() > 0.05 else Verdict.TIE
        submission = judgments.Submission(
            task.comparison_id,
            uuid.uuid4(),
            verdict,
            task.order,
            first_key_ms=4000,
            active_ms=9000 + dice.randrange(5000),
        )
        judgments.submit(s, stage.project.id, annotator.id, submission)
        done += 1
    return done


def train_reward(s: Session, stage: Stage) -> Checkpoint:
    """A finished reward-model run with curves."""
    run = runs.enqueue(s, stage.project.id, RunKind.REWARD, stage.owner.id)
    taken = runs.claim_run(s, "stage")
    assert taken is not None
    assert taken.id == run.id
    steps = range(5, 125, 5)
    rows = [
        {
            "step": i,
            "phase": "train",
            "time": 0.0,
            "loss": 0.69 * math.exp(-i / 160) + 0.02 * math.sin(i),
            "accuracy": 0.5 + 0.27 * (1 - math.exp(-i / 40)) + 0.015 * math.sin(i * 1.3),
            "heldout_loss": 0.69 * math.exp(-i / 210) + 0.03 * math.sin(i / 9),
            "heldout_accuracy": 0.5 + 0.24 * (1 - math.exp(-i / 40)) + 0.02 * math.sin(i),
            "margin": 0.8 * (1 - math.exp(-i / 60)),
        }
        for i in steps
    ]
    runs.append_metrics(s, run.id, taken.attempt, rows)
    metrics = {
        "heldout_accuracy": 0.746,
        "heldout_low": 0.659,
        "heldout_high": 0.817,
        "heldout_n": 114,
        "longer_wins": 0.572,
        "train_accuracy": 0.801,
        "ece": 0.048,
        "pairs_train": judgments.summary(s, stage.project.id).train,
    }
    made = register(s, stage.project, CheckpointKind.REWARD_MODEL, run.id, stage.policy, metrics)
    runs.heartbeat(s, run.id, taken.attempt, Progress(step=120, total=120, phase="train", seconds_left=0, time=0))
    runs.finish(s, run.id, taken.attempt, RunStatus.FINISHED, metrics)
    return made


def train_ppo(s: Session, stage: Stage, finish: bool = True, upto: int = 24) -> Checkpoint | None:
    """A PPO run with curves and samples; left running where it is not to finish."""
    run = runs.enqueue(s, stage.project.id, RunKind.PPO, stage.owner.id)
    taken = runs.claim_run(s, "stage")
    assert taken is not None
    assert taken.id == run.id
    runs.append_metrics(s, run.id, taken.attempt, [ppo_row(i) for i in range(1, upto + 1)])
    fixed = s.query(Prompt).filter_by(project_id=stage.project.id).order_by(Prompt.id).limit(3).all()
    rows = letters(3)
    for step, choose in ((1, 2), (upto, 1)):
        samples = [
            {
                "step": step,
                "prompt_id": str(p.id),
                "completion": rows[i][choose],
                "reward": (-0.4, 0.9)[step > 1] + i / 9,
            }
            for i, p in enumerate(fixed)
        ]
        runs.append_samples(s, run.id, taken.attempt, samples)
    left = (24 - upto) * 4.2
    runs.heartbeat(s, run.id, taken.attempt, Progress(step=upto, total=24, phase="learning", seconds_left=left, time=0))
    if not finish:
        return None
    metrics: dict[str, object] = {"reward": 0.84, "reward_before": -0.12, "kl": 3.1, "entropy": 1.9, "length": 42.0}
    made = register(s, stage.project, CheckpointKind.POLICY, run.id, stage.policy, metrics)
    runs.finish(s, run.id, taken.attempt, RunStatus.FINISHED, metrics)
    return made


def ppo_row(i: int) -> dict[str, object]:
    """One iteration of a healthy run."""
    wobble = math.sin(i * 2.1)
    return {
        "step": i,
        "phase": "learning",
        "time": 0.0,
        "objective/scores": -0.1 + 1.0 * (1 - math.exp(-i / 8)) + 0.05 * wobble,
        "objective/kl": 3.4 * (1 - math.exp(-i / 12)) + 0.08 * wobble,
        "objective/rlhf_reward": -0.1 + 0.5 * (1 - math.exp(-i / 8)) + 0.04 * wobble,
        "policy/entropy_avg": 2.6 - 0.7 * (1 - math.exp(-i / 10)),
        "completions/mean_length": 44 - 2 * (1 - math.exp(-i / 6)) + wobble,
        "completions/truncated_share": 0.01 + 0.005 * wobble,
        "policy/clipfrac_avg": 0.08 + 0.02 * wobble,
        "policy/approxkl_avg": 0.012 + 0.003 * wobble,
        "loss/value_avg": 0.4 * math.exp(-i / 7) + 0.05,
        "value/explained_variance": 0.7 * (1 - math.exp(-i / 6)) - 0.1,
    }


def unprepared(s: Session, stage: Stage) -> Project:
    """A project whose starter policy is in training."""
    project = projects.create_project(s, "first-steps", "First steps", by=stage.owner.id)
    rows: list[tuple[list[Message], str]] = [([{"role": "user", "content": p}], good) for p, good, _ in letters(30)]
    prompts.add_demonstrations(s, project, rows, "stage")
    run = runs.enqueue(s, project.id, RunKind.SFT, None)
    taken = runs.claim_run(s, "stage")
    assert taken is not None
    curve = [
        {"step": i, "phase": "train", "time": 0.0, "loss": 0.7 + 6.2 * math.exp(-i / 60)} for i in range(5, 325, 5)
    ]
    runs.append_metrics(s, run.id, taken.attempt, curve)
    runs.heartbeat(s, run.id, taken.attempt, Progress(step=320, total=560, phase="train", seconds_left=52, time=0))
    return project
