"""What is never changed: the database itself refuses, whoever asks."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NEVER_CHANGED = (
    "judgment_revision",
    "completion",
    "candidate",
    "demonstration",
    "checkpoint",
    "promotion",
    "snapshot",
    "snapshot_judgment",
    "guideline",
    "audit_event",
)


def upgrade() -> None:
    op.execute(
        """
        CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'A row of % is never changed or deleted.', TG_TABLE_NAME
                USING ERRCODE = 'integrity_constraint_violation';
        END
        $$
        """
    )
    for table in NEVER_CHANGED:
        op.execute(
            f"CREATE TRIGGER {table}_never_changes BEFORE UPDATE OR DELETE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
    # The split of a prompt, once it has been trained or measured on, must not move.
    op.execute(
        "CREATE TRIGGER prompt_keeps_its_split BEFORE UPDATE OF split, messages, digest ON prompt"
        " FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        "CREATE TRIGGER project_keeps_its_salt BEFORE UPDATE OF salt, heldout_share ON project"
        " FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER project_keeps_its_salt ON project")
    op.execute("DROP TRIGGER prompt_keeps_its_split ON prompt")
    for table in NEVER_CHANGED:
        op.execute(f"DROP TRIGGER {table}_never_changes ON {table}")
    op.execute("DROP FUNCTION refuse_change()")
