"""Chats: an annotator writes, two answers come, the pick goes on. Each turn is a comparison like any other.

The answers are sampled between two transactions: `plan` says what to ask for, `keep` stores what came. Whatever ends in
between has stored nothing.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, func, select, text, update
from sqlalchemy.orm import Session

from app.core.configs import SamplingSettings
from app.core.errors import Conflict, Invalid, NotFound
from app.core.pairing import side_order
from app.core.records import Message
from app.core.vocabulary import AssignmentState, ChatState, DrawReason, DropCause, Mode, Verdict
from app.store import checkpoints, comparisons, judgments
from app.store.bulk import place_prompts
from app.store.claims import lock_member
from app.store.comparisons import SampledCompletion
from app.store.judgments import Submission
from app.store.models import Assignment, Chat, ChatTurn, Comparison, Project, Slot, SlotState, new_id

LONGEST_MESSAGE = 20_000
SOURCE = "chat"


@dataclass(frozen=True)
class Waiting:
    """A turn whose two answers wait for the pick; `answers` and `order` are as they are shown to this person."""

    comparison_id: uuid.UUID
    answers: list[str]
    order: list[int]


@dataclass(frozen=True)
class Talk:
    """One person's chat as it stands; without an id one that has not begun.

    `history` ends with the person's message while a turn waits for its pick, else with the answer that goes on.
    `said` is how the last turn was judged, null where it was skipped; `again` are the words of one that led nowhere.
    """

    chat_id: uuid.UUID | None
    state: ChatState
    turns: int
    done: int
    history: list[Message]
    waiting: Waiting | None
    said: Verdict | None
    again: str


@dataclass(frozen=True)
class Plan:
    """What to sample for the next turn, and for which comparison: its id decides who stands on which side."""

    chat_id: uuid.UUID | None
    comparison_id: uuid.UUID
    turn: int
    messages: list[Message]
    policies: tuple[uuid.UUID, uuid.UUID]
    models: tuple[str, str]
    sampling: SamplingSettings
    order: list[int]


_LAST = text(
    """
    SELECT t.turn, t.comparison_id, p.messages, a.state, r.verdict, r.tiers, r.shown_order, (
        SELECT array_agg(o.text ORDER BY k.position)
        FROM candidate k JOIN completion o ON o.id = k.completion_id
        WHERE k.comparison_id = t.comparison_id
    ) AS texts
    FROM chat_turn t
    JOIN comparison c ON c.id = t.comparison_id
    JOIN prompt p ON p.id = c.prompt_id
    JOIN assignment a ON a.comparison_id = t.comparison_id AND a.account_id = :account
    LEFT JOIN judgment j ON j.comparison_id = a.comparison_id AND j.account_id = a.account_id AND NOT j.withdrawn
    LEFT JOIN judgment_revision r ON r.judgment_id = j.id AND r.revision = j.revision
    WHERE t.chat_id = :chat
    ORDER BY t.turn DESC LIMIT 1
    """
)


def talk(s: Session, project: Project, account_id: uuid.UUID, chat_id: uuid.UUID | None = None) -> Talk:
    """This person's open chat, or the one that is named; NotFound for somebody else's."""
    chat = _newest(s, project.id, account_id) if chat_id is None else _mine(s, project.id, account_id, chat_id)
    if chat is None or (chat_id is None and chat.state is not ChatState.OPEN):
        return Talk(None, ChatState.OPEN, project.chat_turns, 0, [], None, None, "")
    return _as_it_stands(s, chat)


def _as_it_stands(s: Session, chat: Chat) -> Talk:
    last = s.execute(_LAST, {"chat": chat.id, "account": chat.account_id}).one()
    history, waiting, again = list(last.messages), None, ""
    if last.verdict == Verdict.BOTH_BAD or last.state == AssignmentState.SKIPPED:
        again = history.pop()["content"]
    elif last.tiers is not None:
        history.append({"role": "assistant", "content": last.texts[_goes_on(last)]})
    else:
        order = side_order(str(last.comparison_id), str(chat.account_id), len(last.texts))
        waiting = Waiting(last.comparison_id, [last.texts[i] for i in order], order)
    done = last.turn + (waiting is None)
    said = Verdict(last.verdict) if last.verdict else None
    return Talk(chat.id, chat.state, chat.turns, done, history, waiting, said, again)


def _goes_on(last: Row[Any]) -> int:
    """The canonical position of the answer that the chat goes on with: the better, of two alike the left one."""
    best: list[int] = last.tiers[0]
    return int(best[0] if len(best) == 1 else last.shown_order[0])


def plan(s: Session, project: Project, account_id: uuid.UUID, message: str) -> Plan:
    """What to sample in answer to this message. The policies are those that the chat began with."""
    if project.mode is not Mode.CHAT:
        raise NotFound("This project asks for something else than chats.")
    if not message.strip() or len(message) > LONGEST_MESSAGE:
        raise Invalid(f"A message has between 1 and {LONGEST_MESSAGE} characters.", "Nothing was sent.")
    now = talk(s, project, account_id)
    if now.waiting is not None:
        raise Conflict("Two answers wait for your choice.", "Choose one; then the chat goes on.")
    if now.chat_id is not None:
        chat = s.get_one(Chat, now.chat_id)
        policies = (chat.first_policy_id, chat.second_policy_id)
    elif project.current_policy_id is not None:
        policies = (project.current_policy_id, project.chat_policy_id or project.current_policy_id)
    else:
        raise Conflict("No policy can answer yet.", "The first one is being trained; come back in a few minutes.")
    models = [checkpoints.checkpoint(s, project.id, policy_id).folder_name for policy_id in policies]
    comparison_id = new_id()
    return Plan(
        chat_id=now.chat_id,
        comparison_id=comparison_id,
        turn=now.done,
        messages=[*now.history, {"role": "user", "content": message}],
        policies=policies,
        models=(models[0], models[1]),
        sampling=SamplingSettings.model_validate(project.sampling),
        order=side_order(str(comparison_id), str(account_id)),
    )


def keep(
    s: Session, project: Project, account_id: uuid.UUID, plan: Plan, answers: Sequence[SampledCompletion]
) -> Comparison:
    """Store a turn whose answers have come: the comparison's one vote is leased to the person who leads the chat.

    Conflict where the chat went on elsewhere meanwhile.
    """
    lease = lock_member(s, project.id, account_id)
    now = talk(s, project, account_id)
    if (now.chat_id, now.done, now.waiting, now.history) != (plan.chat_id, plan.turn, None, plan.messages[:-1]):
        raise Conflict("This chat went on in another tab.", "Nothing of this turn was stored. Reload the page.")
    chat_id = plan.chat_id or _begin(s, project, account_id, plan)
    [prompt_id], _ = place_prompts(s, project, [plan.messages], SOURCE)
    comparison = comparisons.add_sampled_pair(
        s, project, prompt_id, answers, DrawReason.CHAT, comparison_id=plan.comparison_id, votes=1
    )
    s.add(
        Assignment(
            comparison_id=comparison.id,
            account_id=account_id,
            project_id=project.id,
            lease_expires_at=func.now() + func.make_interval(0, 0, 0, 0, 0, 0, lease),
        )
    )
    s.flush()
    s.execute(
        update(Slot)
        .where(Slot.comparison_id == comparison.id, Slot.state == SlotState.FREE)
        .values(state=SlotState.LEASED, holder_id=account_id),
        execution_options={"synchronize_session": False},
    )
    s.add(ChatTurn(chat_id=chat_id, turn=plan.turn, project_id=project.id, comparison_id=comparison.id))
    s.flush()
    return comparison


def _begin(s: Session, project: Project, account_id: uuid.UUID, plan: Plan) -> uuid.UUID:
    chat = Chat(
        id=new_id(),
        project_id=project.id,
        account_id=account_id,
        first_policy_id=plan.policies[0],
        second_policy_id=plan.policies[1],
        turns=project.chat_turns,
    )
    s.add(chat)
    s.flush()
    return chat.id


def dropped(s: Session, project_id: uuid.UUID, plan: Plan, cause: DropCause) -> None:
    """Remember a pair that was shown to nobody, as the pool does."""
    for policy_id in sorted(set(plan.policies)):
        comparisons.count_dropped(s, project_id, policy_id, cause)


def pick(s: Session, project: Project, account_id: uuid.UUID, submission: Submission) -> Talk:
    """Take the judgment of a chat's newest turn; the last turn that the project wants finishes the chat."""
    lock_member(s, project.id, account_id)
    chat, is_last = _of_turn(s, project.id, account_id, submission.comparison_id)
    receipt = judgments.submit(s, project.id, account_id, submission)
    if not receipt.replayed and (chat.state is not ChatState.OPEN or not is_last):
        raise Conflict("The chat has gone on since.", "Nothing was changed. Reload the page.")
    now = _as_it_stands(s, chat)
    if chat.state is ChatState.OPEN and now.done >= chat.turns:
        _close(s, chat, ChatState.FINISHED)
    return _as_it_stands(s, chat)


def skip(s: Session, project: Project, account_id: uuid.UUID, comparison_id: uuid.UUID) -> Talk:
    """Leave a turn unjudged: neither answer goes on, and nobody else is handed the pair."""
    lock_member(s, project.id, account_id)
    chat, is_last = _of_turn(s, project.id, account_id, comparison_id)
    if chat.state is not ChatState.OPEN or not is_last:
        raise Conflict("The chat has gone on since.", "Nothing was changed. Reload the page.")
    _leave(s, project.id, account_id, comparison_id)
    if _as_it_stands(s, chat).done >= chat.turns:
        _close(s, chat, ChatState.FINISHED)
    return _as_it_stands(s, chat)


def undo(s: Session, project: Project, account_id: uuid.UUID) -> Talk:
    """Take the newest pick back, as long as nothing was asked since; a chat that it finished is open again."""
    lock_member(s, project.id, account_id)
    chat = _newest(s, project.id, account_id)
    last = None if chat is None else s.execute(_LAST, {"chat": chat.id, "account": account_id}).one()
    if chat is None or last is None or last.verdict is None or chat.state is ChatState.ABANDONED:
        raise Conflict("There is nothing to undo.", "The newest choice can be taken back, before the next message.")
    if judgments.undo(s, project.id, account_id).comparison_id != last.comparison_id:
        raise Conflict("Your newest judgment is not of this chat.", "Nothing was changed.")
    chat.state, chat.ended_at = ChatState.OPEN, None
    s.flush()
    return _as_it_stands(s, chat)


def end(s: Session, project: Project, account_id: uuid.UUID, chat_id: uuid.UUID) -> None:
    """End a chat: finished, or abandoned where nothing in it was judged. An unjudged turn is skipped."""
    lock_member(s, project.id, account_id)
    chat = _mine(s, project.id, account_id, chat_id)
    if chat.state is not ChatState.OPEN:
        return
    now = _as_it_stands(s, chat)
    if now.waiting is not None:
        _leave(s, project.id, account_id, now.waiting.comparison_id)
    judged = (
        select(func.count())
        .select_from(ChatTurn)
        .join(Assignment, Assignment.comparison_id == ChatTurn.comparison_id)
        .where(ChatTurn.chat_id == chat.id, Assignment.state == AssignmentState.JUDGED)
    )
    _close(s, chat, ChatState.FINISHED if s.scalars(judged).one() else ChatState.ABANDONED)


def _leave(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, comparison_id: uuid.UUID) -> None:
    judgments.skip(s, project_id, account_id, comparison_id)
    comparisons.retire(s, project_id, Comparison.id == comparison_id)


def _close(s: Session, chat: Chat, state: ChatState) -> None:
    chat.state = state
    chat.ended_at = s.scalars(select(func.clock_timestamp())).one()
    s.flush()


def _newest(s: Session, project_id: uuid.UUID, account_id: uuid.UUID) -> Chat | None:
    query = select(Chat).where(Chat.project_id == project_id, Chat.account_id == account_id)
    return s.scalars(query.order_by(Chat.created_at.desc(), Chat.id.desc()).limit(1)).one_or_none()


def _mine(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, chat_id: uuid.UUID) -> Chat:
    query = select(Chat).where(Chat.project_id == project_id, Chat.account_id == account_id, Chat.id == chat_id)
    found = s.scalars(query).one_or_none()
    if found is None:
        raise NotFound("There is no such chat.")
    return found


def _of_turn(s: Session, project_id: uuid.UUID, account_id: uuid.UUID, comparison_id: uuid.UUID) -> tuple[Chat, bool]:
    """The chat that this comparison is a turn of, and whether it is its newest."""
    query = select(ChatTurn).where(ChatTurn.project_id == project_id, ChatTurn.comparison_id == comparison_id)
    turn = s.scalars(query).one_or_none()
    if turn is None:
        raise NotFound("This comparison was not handed to you.", "Reload the page.")
    chat = _mine(s, project_id, account_id, turn.chat_id)
    newest = s.scalars(select(func.max(ChatTurn.turn)).where(ChatTurn.chat_id == chat.id)).one()
    return chat, turn.turn == newest
