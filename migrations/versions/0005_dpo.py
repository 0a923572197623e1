"""A kind of run that learns a policy from the judgments themselves."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE run DROP CONSTRAINT ck_run_kind")
    op.execute("ALTER TABLE run ADD CONSTRAINT ck_run_kind CHECK (kind IN ('sft', 'reward', 'ppo', 'dpo'))")
    op.execute(
        "ALTER TABLE run ADD CONSTRAINT ck_run_dpo_reads_a_snapshot CHECK (kind <> 'dpo' OR snapshot_id IS NOT NULL)"
    )


def downgrade() -> None:
    # Where there are such runs this is refused, and nothing changes: their policies may be in use.
    op.execute("ALTER TABLE run DROP CONSTRAINT ck_run_dpo_reads_a_snapshot")
    op.execute("ALTER TABLE run DROP CONSTRAINT ck_run_kind")
    op.execute("ALTER TABLE run ADD CONSTRAINT ck_run_kind CHECK (kind IN ('sft', 'reward', 'ppo'))")
