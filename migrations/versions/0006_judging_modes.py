"""Ranking, chatting and writing beside pairs; gold, repeats and qualification; identities and password resets."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

PROJECT = (
    "mode VARCHAR(16) DEFAULT 'pair' NOT NULL",
    "answers SMALLINT DEFAULT 2 NOT NULL",
    "ask_flags BOOLEAN DEFAULT true NOT NULL",
    "ask_ratings BOOLEAN DEFAULT false NOT NULL",
    "ask_rationale BOOLEAN DEFAULT true NOT NULL",
    "ask_ideal BOOLEAN DEFAULT true NOT NULL",
    "chat_turns SMALLINT DEFAULT 6 NOT NULL",
    "chat_policy_id UUID",
    "gold_rate DOUBLE PRECISION DEFAULT 0 NOT NULL",
    "repeat_rate DOUBLE PRECISION DEFAULT 0 NOT NULL",
    "qualify_on SMALLINT DEFAULT 0 NOT NULL",
    "qualify_at DOUBLE PRECISION DEFAULT 0.8 NOT NULL",
    "cap INTEGER",
    "admins_judge BOOLEAN DEFAULT true NOT NULL",
)
PROJECT_CHECKS = {
    "mode": "mode IN ('pair', 'rank', 'chat', 'demonstrate')",
    "answers": "CASE WHEN mode = 'rank' THEN answers BETWEEN 3 AND 9 ELSE answers = 2 END",
    "chat_turns": "chat_turns BETWEEN 1 AND 50",
    "check_rates": "gold_rate BETWEEN 0 AND 0.5 AND repeat_rate BETWEEN 0 AND 0.5",
    "qualification": "qualify_on BETWEEN 0 AND 100 AND qualify_at BETWEEN 0.5 AND 1",
    "cap": "cap > 0",
}
MEMBERSHIP = (
    "guidelines_read INTEGER DEFAULT 0 NOT NULL",
    "paused_at TIMESTAMP WITH TIME ZONE",
    "left_out BOOLEAN DEFAULT false NOT NULL",
    "qualified_at TIMESTAMP WITH TIME ZONE",
    "failed_at TIMESTAMP WITH TIME ZONE",
    "retried_at TIMESTAMP WITH TIME ZONE",
)
INVITATION = ("note TEXT DEFAULT '' NOT NULL",)
REVISION = ("flags JSONB", "ratings JSONB", "rationale TEXT", "ideal_id UUID")
TABLES = ("gold", "draft", "skill", "writing", "chat_turn", "chat", "identity", "password_reset")
REASONS = ("random", "gold", "repeat", "contest", "uncertain")


def upgrade() -> None:
    _add("project", PROJECT)
    for name, condition in PROJECT_CHECKS.items():
        op.execute(f"ALTER TABLE project ADD CONSTRAINT ck_project_{name} CHECK ({condition})")
    op.execute(
        "ALTER TABLE project ADD CONSTRAINT fk_project_chat_policy"
        " FOREIGN KEY (id, chat_policy_id, current_policy_kind) REFERENCES checkpoint (project_id, id, kind)"
    )
    _add("guideline", ("created_by UUID",))
    op.execute(
        "ALTER TABLE guideline ADD CONSTRAINT fk_guideline_created_by FOREIGN KEY (created_by) REFERENCES account (id)"
    )
    _add("membership", MEMBERSHIP)
    op.execute(
        "ALTER TABLE membership ADD CONSTRAINT ck_membership_qualified_or_failed"
        " CHECK (num_nonnulls(qualified_at, failed_at) < 2)"
    )
    _add("invitation", INVITATION)
    _add("comparison", ("priority SMALLINT DEFAULT 0 NOT NULL",))
    _reasons((*REASONS, "chat"))
    op.execute("ALTER TABLE comparison DROP CONSTRAINT ck_comparison_gold_has_no_slots")
    op.execute(
        "ALTER TABLE comparison ADD CONSTRAINT ck_comparison_checks_have_no_slots"
        " CHECK ((reason IN ('gold', 'repeat')) = (votes_wanted = 0) AND votes_wanted >= 0)"
    )
    _add("slot", ("priority SMALLINT DEFAULT 0 NOT NULL",))
    op.execute("DROP INDEX ix_slot_free")
    op.execute("CREATE INDEX ix_slot_free ON slot (project_id, priority, draw_key) WHERE state = 'free'")
    _add("judgment_revision", REVISION)
    op.execute(
        "ALTER TABLE judgment_revision"
        " ADD CONSTRAINT fk_judgment_revision_ideal_id FOREIGN KEY (ideal_id) REFERENCES completion (id),"
        " ADD CONSTRAINT ck_judgment_revision_flags CHECK (flags IS NULL OR jsonb_typeof(flags) = 'object'),"
        " ADD CONSTRAINT ck_judgment_revision_ratings CHECK (ratings IS NULL OR jsonb_typeof(ratings) = 'object')"
    )
    _add("demonstration", ("replaces_id UUID", "guideline_version INTEGER"))
    op.execute(
        "ALTER TABLE demonstration"
        " ADD CONSTRAINT uq_demonstration_project_id_id UNIQUE (project_id, id),"
        " ADD CONSTRAINT uq_demonstration_project_id_replaces_id UNIQUE (project_id, replaces_id),"
        " ADD CONSTRAINT fk_demonstration_project_id_replaces_id"
        " FOREIGN KEY (project_id, replaces_id) REFERENCES demonstration (project_id, id)"
    )
    # A person's history, beside the index of what stands.
    op.execute("CREATE INDEX ix_judgment_withdrawn ON judgment (project_id, account_id, judged_at) WHERE withdrawn")
    # Which prompts have no demonstration yet, and a random one of them.
    op.execute("CREATE INDEX ix_demonstration_prompt ON demonstration (project_id, prompt_id)")
    op.execute("CREATE INDEX ix_prompt_writing ON prompt (project_id, draw_key)")
    # Who signs in by a provider has no password.
    op.execute("ALTER TABLE account DROP CONSTRAINT ck_account_username_with_password")
    op.execute(
        "ALTER TABLE account ADD CONSTRAINT ck_account_password_with_username"
        " CHECK (username IS NOT NULL OR password_hash IS NULL)"
    )
    op.execute(
        """
        CREATE TABLE gold (
            comparison_id UUID NOT NULL,
            project_id UUID NOT NULL,
            tiers JSONB NOT NULL,
            explanation TEXT NOT NULL,
            qualification BOOLEAN DEFAULT false NOT NULL,
            created_by UUID,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            retired_at TIMESTAMP WITH TIME ZONE,
            CONSTRAINT pk_gold PRIMARY KEY (comparison_id),
            CONSTRAINT fk_gold_project_id_comparison_id
                FOREIGN KEY(project_id, comparison_id) REFERENCES comparison (project_id, id),
            CONSTRAINT ck_gold_tiers CHECK (jsonb_typeof(tiers) = 'array'),
            CONSTRAINT fk_gold_created_by FOREIGN KEY(created_by) REFERENCES account (id)
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_gold_project_id ON gold (project_id) WHERE retired_at IS NULL
        """
    )
    op.execute(
        """
        CREATE TABLE draft (
            account_id UUID NOT NULL,
            task_id UUID NOT NULL,
            project_id UUID NOT NULL,
            body JSONB NOT NULL,
            updated_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_draft PRIMARY KEY (account_id, task_id),
            CONSTRAINT fk_draft_project_id_account_id
                FOREIGN KEY(project_id, account_id) REFERENCES membership (project_id, account_id),
            CONSTRAINT ck_draft_body CHECK (jsonb_typeof(body) = 'object')
        )
        """
    )
    op.execute(
        """
        CREATE TABLE skill (
            project_id UUID NOT NULL,
            account_id UUID NOT NULL,
            model TEXT NOT NULL,
            skill DOUBLE PRECISION NOT NULL,
            low DOUBLE PRECISION NOT NULL,
            high DOUBLE PRECISION NOT NULL,
            judgments INTEGER NOT NULL,
            fitted_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_skill PRIMARY KEY (project_id, account_id),
            CONSTRAINT fk_skill_project_id_account_id
                FOREIGN KEY(project_id, account_id) REFERENCES membership (project_id, account_id),
            CONSTRAINT ck_skill_interval CHECK (low <= skill AND skill <= high)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE writing (
            prompt_id UUID NOT NULL,
            account_id UUID NOT NULL,
            project_id UUID NOT NULL,
            state VARCHAR(16) NOT NULL,
            leased_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            lease_expires_at TIMESTAMP WITH TIME ZONE,
            skip_reason TEXT,
            key UUID,
            body_hash BYTEA,
            demonstration_id UUID,
            active_ms BIGINT,
            submitted_at TIMESTAMP WITH TIME ZONE,
            CONSTRAINT pk_writing PRIMARY KEY (prompt_id, account_id),
            CONSTRAINT fk_writing_project_id_prompt_id
                FOREIGN KEY(project_id, prompt_id) REFERENCES prompt (project_id, id),
            CONSTRAINT fk_writing_project_id_account_id
                FOREIGN KEY(project_id, account_id) REFERENCES membership (project_id, account_id),
            CONSTRAINT fk_writing_project_id_demonstration_id
                FOREIGN KEY(project_id, demonstration_id) REFERENCES demonstration (project_id, id),
            CONSTRAINT uq_writing_account_id_key UNIQUE (account_id, key),
            CONSTRAINT ck_writing_leased_until CHECK ((state = 'leased') = (lease_expires_at IS NOT NULL)),
            CONSTRAINT ck_writing_written CHECK (state <> 'written' OR num_nulls(demonstration_id, key, body_hash) = 0),
            CONSTRAINT ck_writing_durations CHECK (active_ms >= 0),
            CONSTRAINT ck_writing_state CHECK (state IN ('leased', 'written', 'skipped', 'expired'))
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_writing_account ON writing (project_id, account_id, submitted_at)
        """
    )
    op.execute(
        """
        CREATE INDEX ix_writing_lease ON writing (lease_expires_at) WHERE state = 'leased'
        """
    )
    op.execute(
        """
        CREATE UNIQUE INDEX uq_writing_prompt ON writing (prompt_id) WHERE state IN ('leased', 'written')
        """
    )
    op.execute(
        """
        CREATE TABLE chat (
            id UUID NOT NULL,
            project_id UUID NOT NULL,
            account_id UUID NOT NULL,
            first_policy_id UUID NOT NULL,
            second_policy_id UUID NOT NULL,
            turns SMALLINT NOT NULL,
            state VARCHAR(16) NOT NULL,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            ended_at TIMESTAMP WITH TIME ZONE,
            CONSTRAINT pk_chat PRIMARY KEY (id),
            CONSTRAINT uq_chat_project_id_id UNIQUE (project_id, id),
            CONSTRAINT fk_chat_project_id_account_id
                FOREIGN KEY(project_id, account_id) REFERENCES membership (project_id, account_id),
            CONSTRAINT fk_chat_project_id_first_policy_id
                FOREIGN KEY(project_id, first_policy_id) REFERENCES checkpoint (project_id, id),
            CONSTRAINT fk_chat_project_id_second_policy_id
                FOREIGN KEY(project_id, second_policy_id) REFERENCES checkpoint (project_id, id),
            CONSTRAINT ck_chat_state CHECK (state IN ('open', 'finished', 'abandoned'))
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_chat_account ON chat (project_id, account_id, created_at)
        """
    )
    op.execute(
        """
        CREATE TABLE chat_turn (
            chat_id UUID NOT NULL,
            turn SMALLINT NOT NULL,
            project_id UUID NOT NULL,
            comparison_id UUID NOT NULL,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_chat_turn PRIMARY KEY (chat_id, turn),
            CONSTRAINT fk_chat_turn_project_id_chat_id
                FOREIGN KEY(project_id, chat_id) REFERENCES chat (project_id, id),
            CONSTRAINT fk_chat_turn_project_id_comparison_id
                FOREIGN KEY(project_id, comparison_id) REFERENCES comparison (project_id, id),
            CONSTRAINT uq_chat_turn_comparison_id UNIQUE (comparison_id),
            CONSTRAINT ck_chat_turn_turn CHECK (turn >= 0)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE identity (
            issuer TEXT NOT NULL,
            subject TEXT NOT NULL,
            account_id UUID NOT NULL,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_identity PRIMARY KEY (issuer, subject),
            CONSTRAINT fk_identity_account_id FOREIGN KEY(account_id) REFERENCES account (id)
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_identity_account_id ON identity (account_id)
        """
    )
    op.execute(
        """
        CREATE TABLE password_reset (
            token_hash BYTEA NOT NULL,
            account_id UUID NOT NULL,
            created_by UUID,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
            used_at TIMESTAMP WITH TIME ZONE,
            CONSTRAINT pk_password_reset PRIMARY KEY (token_hash),
            CONSTRAINT fk_password_reset_account_id FOREIGN KEY(account_id) REFERENCES account (id),
            CONSTRAINT fk_password_reset_created_by FOREIGN KEY(created_by) REFERENCES account (id)
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_password_reset_account_id ON password_reset (account_id)
        """
    )


def downgrade() -> None:
    # Refused where a newer kind of row or an account without a password is there, and nothing changes then.
    for table in TABLES:
        op.execute(f"DROP TABLE {table}")
    op.execute("ALTER TABLE account DROP CONSTRAINT ck_account_password_with_username")
    op.execute(
        "ALTER TABLE account ADD CONSTRAINT ck_account_username_with_password"
        " CHECK ((username IS NULL) = (password_hash IS NULL))"
    )
    op.execute("DROP INDEX ix_prompt_writing")
    op.execute("DROP INDEX ix_judgment_withdrawn")
    op.execute("DROP INDEX ix_demonstration_prompt")
    op.execute("ALTER TABLE demonstration DROP CONSTRAINT fk_demonstration_project_id_replaces_id")
    op.execute("ALTER TABLE demonstration DROP CONSTRAINT uq_demonstration_project_id_id")
    _drop("demonstration", ("replaces_id", "guideline_version"))
    _drop("judgment_revision", REVISION)
    op.execute("DROP INDEX ix_slot_free")
    _drop("slot", ("priority",))
    op.execute("CREATE INDEX ix_slot_free ON slot (project_id, draw_key) WHERE state = 'free'")
    _drop("comparison", ("priority",))
    _reasons(REASONS)
    op.execute("ALTER TABLE comparison DROP CONSTRAINT ck_comparison_checks_have_no_slots")
    op.execute(
        "ALTER TABLE comparison ADD CONSTRAINT ck_comparison_gold_has_no_slots"
        " CHECK ((reason = 'gold') = (votes_wanted = 0) AND votes_wanted >= 0)"
    )
    _drop("invitation", INVITATION)
    _drop("membership", MEMBERSHIP)
    _drop("guideline", ("created_by",))
    _drop("project", PROJECT)


def _add(table: str, columns: tuple[str, ...]) -> None:
    op.execute(f"ALTER TABLE {table} " + ", ".join(f"ADD COLUMN {column}" for column in columns))


def _drop(table: str, columns: tuple[str, ...]) -> None:
    """With a column go the constraints that name it."""
    op.execute(f"ALTER TABLE {table} " + ", ".join(f"DROP COLUMN {column.split()[0]}" for column in columns))


def _reasons(words: tuple[str, ...]) -> None:
    op.execute("ALTER TABLE comparison DROP CONSTRAINT ck_comparison_reason")
    allowed = ", ".join(f"'{word}'" for word in words)
    op.execute(f"ALTER TABLE comparison ADD CONSTRAINT ck_comparison_reason CHECK (reason IN ({allowed}))")
