"""Taking judgments home: streaming, canonical, annotators only as pseudonyms.

The generators read from the session while they run: keep it open until they end.
"""

import uuid
from collections.abc import Iterator

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.core.pairing import pairs_of
from app.store.bulk import canonical
from app.store.snapshots import STANDING, stream


def export_trl(s: Session, project_id: uuid.UUID) -> Iterator[bytes]:
    """TRL's conversational preference format, a line a strict counted pair: {"prompt", "chosen", "rejected"}.

    Ties and both-bad prefer nothing and are left out; so is all that a snapshot leaves out.
    """
    for row in stream(s, STANDING, {"project": project_id}):
        for better, worse in pairs_of(row.tiers):
            pair = {
                "prompt": row.messages,
                "chosen": [{"role": "assistant", "content": row.completions[better]}],
                "rejected": [{"role": "assistant", "content": row.completions[worse]}],
            }
            yield canonical(pair).encode() + b"\n"


# Times are written in UTC whatever the connection's zone.
_UTC = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24\\:MI\\:SS.US"Z"')"""

_FULL = text(
    f"""
    SELECT jsonb_build_object(
        'judgment_id', j.id,
        'annotator', m.pseudonym,
        'withdrawn', j.withdrawn,
        'counted', NOT j.withdrawn AND EXISTS (
            SELECT FROM slot s
            WHERE s.comparison_id = j.comparison_id AND s.holder_id = j.account_id AND s.state = 'filled'
        ),
        'comparison', jsonb_build_object(
            'id', c.id, 'reason', c.reason, 'probability', c.probability, 'state', c.state,
            'votes_wanted', c.votes_wanted, 'repeat_of', c.repeat_of, 'created_at', {_UTC.format("c.created_at")}
        ),
        'prompt', jsonb_build_object('id', p.id, 'messages', p.messages, 'split', p.split, 'source', p.source),
        'completions', (
            SELECT jsonb_agg(
                jsonb_build_object(
                    'id', o.id, 'origin', o.origin, 'text', o.text, 'policy_id', o.checkpoint_id, 'policy', v.name,
                    'seed', o.seed, 'temperature', o.temperature, 'top_p', o.top_p, 'max_tokens', o.max_tokens,
                    'chat_template_hash', o.chat_template_hash, 'finish_reason', o.finish_reason,
                    'latency_ms', o.latency_ms, 'token_ids', o.token_ids, 'logprobs', o.logprobs,
                    'source', o.source, 'author', author.pseudonym, 'edited_from_id', o.edited_from_id
                ) ORDER BY k.position
            )
            FROM candidate k
            JOIN completion o ON o.id = k.completion_id
            LEFT JOIN checkpoint v ON v.id = o.checkpoint_id
            LEFT JOIN membership author ON author.project_id = o.project_id AND author.account_id = o.author_id
            WHERE k.comparison_id = c.id
        ),
        'revisions', (
            SELECT jsonb_agg(
                jsonb_build_object(
                    'revision', r.revision, 'withdrawn', r.withdrawn, 'verdict', r.verdict, 'tiers', r.tiers,
                    'both_bad', r.both_bad, 'strength', r.strength, 'shown_order', r.shown_order,
                    'guideline_version', r.guideline_version, 'first_key_ms', r.first_key_ms,
                    'active_ms', r.active_ms, 'served_at', {_UTC.format("r.served_at")},
                    'submitted_at', {_UTC.format("r.submitted_at")}
                ) ORDER BY r.revision
            )
            FROM judgment_revision r WHERE r.judgment_id = j.id
        )
    ) AS line
    FROM judgment j
    JOIN comparison c ON c.id = j.comparison_id
    JOIN prompt p ON p.id = c.prompt_id
    JOIN membership m ON m.project_id = j.project_id AND m.account_id = j.account_id
    WHERE j.project_id = :project
    ORDER BY j.id
    """  # noqa: S608 - the only thing formatted in is the constant above
)


def export_full(s: Session, project_id: uuid.UUID) -> Iterator[bytes]:
    """Every judgment with its whole history and provenance, a JSON object a line, ordered by id.

    Withdrawn ones and surplus are in it and say so; `revisions` is all that was ever answered.
    """
    for row in stream(s, _FULL, {"project": project_id}):
        yield canonical(row.line).encode() + b"\n"
