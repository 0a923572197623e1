"""The tables, one file a noun. A table's docstring says what a row is; its constraints say what it cannot be."""

from app.store.models.account import (
    Account,
    AccountKind,
    Identity,
    Owner,
    PasswordReset,
    SetupToken,
    SignIn,
    SignInThrottle,
)
from app.store.models.audit import AuditEvent
from app.store.models.base import Base, new_id
from app.store.models.checkpoint import Checkpoint, Promotion
from app.store.models.comparison import Assignment, Candidate, Comparison, DroppedPairs, Gold, Slot, SlotState
from app.store.models.judgment import Draft, Judgment, JudgmentRevision, Skill
from app.store.models.project import Guideline, Invitation, Membership, Project
from app.store.models.prompt import Chat, ChatTurn, Completion, Demonstration, Prompt, Writing
from app.store.models.run import Run, RunMetric, RunSample
from app.store.models.snapshot import Snapshot, SnapshotJudgment

__all__ = [
    "Account",
    "AccountKind",
    "Assignment",
    "AuditEvent",
    "Base",
    "Candidate",
    "Chat",
    "ChatTurn",
    "Checkpoint",
    "Comparison",
    "Completion",
    "Demonstration",
    "Draft",
    "DroppedPairs",
    "Gold",
    "Guideline",
    "Identity",
    "Invitation",
    "Judgment",
    "JudgmentRevision",
    "Membership",
    "Owner",
    "PasswordReset",
    "Project",
    "Promotion",
    "Prompt",
    "Run",
    "RunMetric",
    "RunSample",
    "SetupToken",
    "SignIn",
    "SignInThrottle",
    "Skill",
    "Slot",
    "SlotState",
    "Snapshot",
    "SnapshotJudgment",
    "Writing",
    "new_id",
]
