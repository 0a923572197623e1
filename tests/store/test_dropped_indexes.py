"""Each unique index behind judging is dropped in turn, under a bug that it stands against: the machine notices.

With the index in place the database refuses the same bug. The bugs are put where a query's own filter would hide the
index, or into triggers where our statements are not what should be relied on.
"""

import re
from dataclasses import dataclass

import pytest
from sqlalchemy import text

from app.store import claims, comparisons, judgments
from tests.store.machine import failure_of

TABLES = ("assignment", "slot", "candidate", "judgment", "judgment_revision", "gold")

# What another unique index of the same table implies is there for foreign keys to point at, and guards nothing.
GUARDS = text(
    """
    WITH found AS (
        SELECT t.relname AS on_table, i.relname AS name, x.indpred IS NULL AS whole,
            string_to_array(x.indkey::text, ' ') AS columns
        FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class t ON t.oid = x.indrelid
        JOIN pg_namespace n ON n.oid = t.relnamespace
        WHERE x.indisunique AND n.nspname = 'public' AND t.relname = ANY(:tables)
    )
    SELECT on_table, name FROM found f WHERE NOT EXISTS (
        SELECT FROM found g WHERE g.on_table = f.on_table AND g.name <> f.name AND g.whole AND g.columns <@ f.columns
    )
    """
)


@dataclass(frozen=True)
class Bug:
    """Statements to spoil (module, name, pattern, replacement), or the body of a trigger (when, body) on the table.

    `behind` are the unique indexes that refuse the same bug once the first is gone; they are dropped with it.
    """

    spoil: tuple[tuple[object, str, str, str], ...] = ()
    trigger: tuple[str, str] | None = None
    behind: tuple[str, ...] = ()


BUGS = {
    "pk_assignment": Bug(
        ((claims, "_TAKE", r"(SELECT FROM assignment a WHERE) a\.comparison_id = s\.comparison_id", r"\1 false"),),
        behind=("uq_slot_holder",),
    ),
    "pk_slot": Bug(((comparisons, "_OPEN_MORE", r"short\.top \+ n", "short.top"),)),
    "uq_slot_holder": Bug(
        trigger=(
            "AFTER UPDATE",
            "IF NEW.state = 'leased' AND pg_trigger_depth() = 1 THEN UPDATE slot SET state = 'leased',"
            " holder_id = NEW.holder_id WHERE comparison_id = NEW.comparison_id AND state = 'free'; END IF",
        )
    ),
    "pk_candidate": Bug(trigger=("BEFORE INSERT", "NEW.position := 0")),
    "uq_candidate_comparison_id_completion_id": Bug(
        trigger=(
            "BEFORE INSERT",
            "NEW.completion_id := coalesce((SELECT min(completion_id::text)::uuid FROM candidate"
            " WHERE comparison_id = NEW.comparison_id), NEW.completion_id)",
        )
    ),
    "pk_judgment": Bug(
        trigger=(
            "BEFORE INSERT",
            "NEW.id := coalesce((SELECT min(id::text)::uuid FROM judgment WHERE account_id <> NEW.account_id), NEW.id)",
        ),
        behind=("pk_judgment_revision",),
    ),
    "uq_judgment_comparison_account": Bug(
        ((judgments, "_STORE", r"ON CONFLICT \(comparison_id, account_id\).*?(?=RETURNING)", ""),)
    ),
    "pk_judgment_revision": Bug(trigger=("BEFORE INSERT", "NEW.revision := 1")),
    "uq_judgment_revision_account_id_key": Bug(
        ((judgments, "_STORE", r"ON CONFLICT \(account_id, key\) DO NOTHING", ""),),
        trigger=(
            "BEFORE INSERT",
            "NEW.key := coalesce((SELECT key FROM judgment_revision"
            " WHERE account_id = NEW.account_id ORDER BY submitted_at LIMIT 1), NEW.key)",
        ),
    ),
    "pk_gold": Bug(
        trigger=(
            "AFTER INSERT",
            "IF pg_trigger_depth() = 1 THEN INSERT INTO gold (comparison_id, project_id, tiers, explanation)"
            " VALUES (NEW.comparison_id, NEW.project_id, NEW.tiers, ''); END IF",
        )
    ),
}


def test_no_unique_index_behind_judging_is_forgotten_here(session):
    assert {row.name for row in session.execute(GUARDS, {"tables": list(TABLES)})} == set(BUGS)


@pytest.mark.parametrize("name", BUGS)
def test_without_it_the_machine_fails_and_with_it_the_database_refuses(make, session, monkeypatch, name):
    [table] = [row.on_table for row in session.execute(GUARDS, {"tables": list(TABLES)}) if row.name == name]
    bug = BUGS[name]
    for module, statement, pattern, replacement in bug.spoil:
        spoilt, times = re.subn(pattern, replacement, str(getattr(module, statement)), flags=re.DOTALL)
        assert times, f"{statement} has no longer what this bug takes away"
        monkeypatch.setattr(module, statement, text(spoilt))
    if bug.trigger:
        when, body = bug.trigger
        session.execute(
            text(f"CREATE FUNCTION bug() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$")
        )
        session.execute(text(f"CREATE TRIGGER bug {when} ON {table} FOR EACH ROW EXECUTE FUNCTION bug()"))
    assert f'unique constraint "{name}"' in failure_of(make)
    for dropped in (name, *bug.behind):
        on = session.execute(text("SELECT tablename FROM pg_indexes WHERE indexname = :i"), {"i": dropped}).scalar_one()
        session.execute(text(f"ALTER TABLE {on} DROP CONSTRAINT IF EXISTS {dropped} CASCADE"))
        session.execute(text(f"DROP INDEX IF EXISTS {dropped}"))
    found = failure_of(make)
    assert "AssertionError" in found, found
