"""Prompts, completions, comparisons, slots, judgments."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE prompt (
            id UUID NOT NULL,
            project_id UUID NOT NULL,
            messages JSONB NOT NULL,
            digest BYTEA NOT NULL,
            split VARCHAR(16) NOT NULL,
            source TEXT NOT NULL,
            drawn INTEGER DEFAULT 0 NOT NULL,
            draw_key DOUBLE PRECISION DEFAULT random() NOT NULL,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_prompt PRIMARY KEY (id),
            CONSTRAINT uq_prompt_project_id_id UNIQUE (project_id, id),
            CONSTRAINT uq_prompt_project_id_digest UNIQUE (project_id, digest),
            CONSTRAINT ck_prompt_has_messages
                CHECK (jsonb_typeof(messages) = 'array' AND jsonb_array_length(messages) > 0),
            CONSTRAINT fk_prompt_project_id FOREIGN KEY(project_id) REFERENCES project (id),
            CONSTRAINT ck_prompt_split CHECK (split IN ('train', 'heldout'))
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_prompt_draw ON prompt (project_id, split, drawn, draw_key)
        """
    )
    op.execute(
        """
        CREATE TABLE completion (
            id UUID NOT NULL,
            project_id UUID NOT NULL,
            prompt_id UUID NOT NULL,
            origin VARCHAR(16) NOT NULL,
            text TEXT NOT NULL,
            checkpoint_id UUID,
            seed BIGINT,
            temperature DOUBLE PRECISION,
            top_p DOUBLE PRECISION,
            max_tokens INTEGER,
            chat_template_hash TEXT,
            finish_reason VARCHAR(16),
            latency_ms DOUBLE PRECISION,
            token_ids INTEGER[],
            logprobs REAL[],
            source TEXT,
            author_id UUID,
            edited_from_id UUID,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_completion PRIMARY KEY (id),
            CONSTRAINT uq_completion_project_id_id UNIQUE (project_id, id),
            CONSTRAINT uq_completion_project_id_prompt_id_id UNIQUE (project_id, prompt_id, id),
            CONSTRAINT fk_completion_project_id_prompt_id
                FOREIGN KEY(project_id, prompt_id) REFERENCES prompt (project_id, id),
            CONSTRAINT fk_completion_project_id_checkpoint_id
                FOREIGN KEY(project_id, checkpoint_id) REFERENCES checkpoint (project_id, id),
            CONSTRAINT fk_completion_project_id_author_id
                FOREIGN KEY(project_id, author_id) REFERENCES membership (project_id, account_id),
            CONSTRAINT fk_completion_project_id_edited_from_id
                FOREIGN KEY(project_id, edited_from_id) REFERENCES completion (project_id, id),
            CONSTRAINT ck_completion_sampled_has_provenance
                CHECK (
                CASE WHEN origin = 'sampled'
                THEN num_nulls(
                    checkpoint_id, seed, temperature, top_p, max_tokens, chat_template_hash, finish_reason
                ) = 0
                ELSE num_nonnulls(
                    checkpoint_id, seed, temperature, top_p, max_tokens, chat_template_hash, finish_reason,
                    latency_ms, token_ids, logprobs
                ) = 0 END),
            CONSTRAINT ck_completion_imported_names_source CHECK ((origin = 'imported') = (source IS NOT NULL)),
            CONSTRAINT ck_completion_written_names_author
                CHECK ((origin IN ('written', 'edited')) = (author_id IS NOT NULL)),
            CONSTRAINT ck_completion_edited_names_original CHECK ((origin = 'edited') = (edited_from_id IS NOT NULL)),
            CONSTRAINT ck_completion_a_logprob_per_token CHECK (cardinality(token_ids) = cardinality(logprobs)),
            CONSTRAINT ck_completion_origin CHECK (origin IN ('sampled', 'imported', 'written', 'edited')),
            CONSTRAINT ck_completion_finish_reason CHECK (finish_reason IN ('stop', 'length'))
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_completion_checkpoint ON completion (project_id, checkpoint_id) WHERE checkpoint_id IS NOT NULL
        """
    )
    op.execute(
        """
        CREATE TABLE demonstration (
            id UUID NOT NULL,
            project_id UUID NOT NULL,
            prompt_id UUID NOT NULL,
            completion_id UUID NOT NULL,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_demonstration PRIMARY KEY (id),
            CONSTRAINT uq_demonstration_project_id_completion_id UNIQUE (project_id, completion_id),
            CONSTRAINT fk_demonstration_project_id_prompt_id_completion_id
                FOREIGN KEY(project_id, prompt_id, completion_id) REFERENCES completion (project_id, prompt_id, id)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE comparison (
            id UUID NOT NULL,
            project_id UUID NOT NULL,
            prompt_id UUID NOT NULL,
            checkpoint_id UUID,
            reason VARCHAR(16) NOT NULL,
            probability DOUBLE PRECISION NOT NULL,
            state VARCHAR(16) NOT NULL,
            votes_wanted SMALLINT NOT NULL,
            repeat_of UUID,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_comparison PRIMARY KEY (id),
            CONSTRAINT uq_comparison_project_id_id UNIQUE (project_id, id),
            CONSTRAINT uq_comparison_project_id_prompt_id_id UNIQUE (project_id, prompt_id, id),
            CONSTRAINT fk_comparison_project_id_prompt_id
                FOREIGN KEY(project_id, prompt_id) REFERENCES prompt (project_id, id),
            CONSTRAINT fk_comparison_project_id_checkpoint_id
                FOREIGN KEY(project_id, checkpoint_id) REFERENCES checkpoint (project_id, id),
            CONSTRAINT fk_comparison_project_id_repeat_of
                FOREIGN KEY(project_id, repeat_of) REFERENCES comparison (project_id, id),
            CONSTRAINT ck_comparison_probability CHECK (probability > 0 AND probability <= 1),
            CONSTRAINT ck_comparison_repeat_names_original CHECK ((reason = 'repeat') = (repeat_of IS NOT NULL)),
            CONSTRAINT ck_comparison_gold_has_no_slots
                CHECK ((reason = 'gold') = (votes_wanted = 0) AND votes_wanted >= 0),
            CONSTRAINT fk_comparison_project_id FOREIGN KEY(project_id) REFERENCES project (id),
            CONSTRAINT ck_comparison_reason CHECK (reason IN ('random', 'gold', 'repeat', 'contest', 'uncertain')),
            CONSTRAINT ck_comparison_state CHECK (state IN ('open', 'retired', 'imported'))
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_comparison_open ON comparison (project_id, checkpoint_id) WHERE state = 'open'
        """
    )
    op.execute(
        """
        CREATE TABLE candidate (
            comparison_id UUID NOT NULL,
            position SMALLINT NOT NULL,
            project_id UUID NOT NULL,
            prompt_id UUID NOT NULL,
            completion_id UUID NOT NULL,
            CONSTRAINT pk_candidate PRIMARY KEY (comparison_id, position),
            CONSTRAINT fk_candidate_project_id_prompt_id_comparison_id
                FOREIGN KEY(project_id, prompt_id, comparison_id) REFERENCES comparison (project_id, prompt_id, id),
            CONSTRAINT fk_candidate_project_id_prompt_id_completion_id
                FOREIGN KEY(project_id, prompt_id, completion_id) REFERENCES completion (project_id, prompt_id, id),
            CONSTRAINT uq_candidate_comparison_id_completion_id UNIQUE (comparison_id, completion_id),
            CONSTRAINT ck_candidate_position CHECK (position >= 0)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE assignment (
            comparison_id UUID NOT NULL,
            account_id UUID NOT NULL,
            project_id UUID NOT NULL,
            state VARCHAR(16) NOT NULL,
            leased_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            lease_expires_at TIMESTAMP WITH TIME ZONE,
            skip_reason VARCHAR,
            CONSTRAINT pk_assignment PRIMARY KEY (comparison_id, account_id),
            CONSTRAINT fk_assignment_project_id_comparison_id
                FOREIGN KEY(project_id, comparison_id) REFERENCES comparison (project_id, id),
            CONSTRAINT fk_assignment_project_id_account_id
                FOREIGN KEY(project_id, account_id) REFERENCES membership (project_id, account_id),
            CONSTRAINT ck_assignment_leased_until CHECK ((state = 'leased') = (lease_expires_at IS NOT NULL)),
            CONSTRAINT ck_assignment_skip_reason CHECK (state = 'skipped' OR skip_reason IS NULL),
            CONSTRAINT ck_assignment_state CHECK (state IN ('leased', 'judged', 'skipped', 'expired'))
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_assignment_lease ON assignment (lease_expires_at) WHERE state = 'leased'
        """
    )
    op.execute(
        """
        CREATE INDEX ix_assignment_unjudged ON assignment (project_id, account_id) WHERE state IN ('leased', 'expired')
        """
    )
    op.execute(
        """
        CREATE TABLE slot (
            comparison_id UUID NOT NULL,
            position SMALLINT NOT NULL,
            project_id UUID NOT NULL,
            state VARCHAR NOT NULL,
            holder_id UUID,
            draw_key DOUBLE PRECISION DEFAULT random() NOT NULL,
            CONSTRAINT pk_slot PRIMARY KEY (comparison_id, position),
            CONSTRAINT fk_slot_project_id_comparison_id
                FOREIGN KEY(project_id, comparison_id) REFERENCES comparison (project_id, id),
            CONSTRAINT fk_slot_comparison_id_holder_id
                FOREIGN KEY(comparison_id, holder_id) REFERENCES assignment (comparison_id, account_id),
            CONSTRAINT ck_slot_state CHECK (state IN ('free', 'leased', 'filled', 'retired')),
            CONSTRAINT ck_slot_held_by_somebody CHECK ((state IN ('leased', 'filled')) = (holder_id IS NOT NULL)),
            CONSTRAINT ck_slot_position CHECK (position >= 0)
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_slot_free ON slot (project_id, draw_key) WHERE state = 'free'
        """
    )
    op.execute(
        """
        CREATE UNIQUE INDEX uq_slot_holder ON slot (comparison_id, holder_id) WHERE holder_id IS NOT NULL
        """
    )
    op.execute(
        """
        CREATE TABLE dropped_pairs (
            project_id UUID NOT NULL,
            checkpoint_id UUID NOT NULL,
            cause VARCHAR(16) NOT NULL,
            count INTEGER NOT NULL,
            CONSTRAINT pk_dropped_pairs PRIMARY KEY (project_id, checkpoint_id, cause),
            CONSTRAINT fk_dropped_pairs_project_id_checkpoint_id
                FOREIGN KEY(project_id, checkpoint_id) REFERENCES checkpoint (project_id, id),
            CONSTRAINT ck_dropped_pairs_count CHECK (count > 0),
            CONSTRAINT ck_dropped_pairs_cause CHECK (cause IN ('identical', 'empty', 'broken'))
        )
        """
    )
    op.execute(
        """
        CREATE TABLE judgment (
            id UUID NOT NULL,
            project_id UUID NOT NULL,
            comparison_id UUID NOT NULL,
            account_id UUID NOT NULL,
            revision INTEGER NOT NULL,
            withdrawn BOOLEAN NOT NULL,
            judged_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_judgment PRIMARY KEY (id),
            CONSTRAINT uq_judgment_comparison_account UNIQUE (comparison_id, account_id),
            CONSTRAINT uq_judgment_id_account_id UNIQUE (id, account_id),
            CONSTRAINT fk_judgment_project_id_comparison_id
                FOREIGN KEY(project_id, comparison_id) REFERENCES comparison (project_id, id),
            CONSTRAINT fk_judgment_comparison_id_account_id
                FOREIGN KEY(comparison_id, account_id) REFERENCES assignment (comparison_id, account_id),
            CONSTRAINT ck_judgment_revision CHECK (revision > 0)
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_judgment_latest ON judgment (project_id, account_id, judged_at) WHERE NOT withdrawn
        """
    )
    op.execute(
        """
        CREATE TABLE judgment_revision (
            judgment_id UUID NOT NULL,
            revision INTEGER NOT NULL,
            account_id UUID NOT NULL,
            key UUID NOT NULL,
            withdrawn BOOLEAN NOT NULL,
            verdict VARCHAR(16),
            tiers JSONB,
            both_bad BOOLEAN NOT NULL,
            strength SMALLINT,
            shown_order JSONB,
            guideline_version INTEGER,
            counted BOOLEAN NOT NULL,
            served_at TIMESTAMP WITH TIME ZONE,
            first_key_ms BIGINT,
            active_ms BIGINT,
            submitted_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_judgment_revision PRIMARY KEY (judgment_id, revision),
            CONSTRAINT fk_judgment_revision_judgment_id_account_id
                FOREIGN KEY(judgment_id, account_id) REFERENCES judgment (id, account_id),
            CONSTRAINT uq_judgment_revision_account_id_key UNIQUE (account_id, key),
            CONSTRAINT ck_judgment_revision_revision CHECK (revision > 0),
            CONSTRAINT ck_judgment_revision_says_or_withdraws
                CHECK (CASE WHEN withdrawn THEN num_nonnulls(tiers, verdict, strength) = 0
                ELSE tiers IS NOT NULL AND jsonb_typeof(tiers) = 'array' END),
            CONSTRAINT ck_judgment_revision_strength CHECK (strength BETWEEN 1 AND 4),
            CONSTRAINT ck_judgment_revision_both_bad_is_a_tie CHECK (NOT both_bad OR jsonb_array_length(tiers) = 1),
            CONSTRAINT ck_judgment_revision_durations CHECK (active_ms >= 0 AND first_key_ms >= 0),
            CONSTRAINT ck_judgment_revision_verdict CHECK (verdict IN ('left', 'right', 'tie', 'both_bad'))
        )
        """
    )
    op.execute(
        """
        CREATE TABLE snapshot_judgment (
            snapshot_id UUID NOT NULL,
            judgment_id UUID NOT NULL,
            revision INTEGER NOT NULL,
            CONSTRAINT pk_snapshot_judgment PRIMARY KEY (snapshot_id, judgment_id),
            CONSTRAINT fk_snapshot_judgment_judgment_id_revision
                FOREIGN KEY(judgment_id, revision) REFERENCES judgment_revision (judgment_id, revision),
            CONSTRAINT fk_snapshot_judgment_snapshot_id FOREIGN KEY(snapshot_id) REFERENCES snapshot (id)
        )
        """
    )


def downgrade() -> None:
    op.execute("DROP TABLE snapshot_judgment")
    op.execute("DROP TABLE judgment_revision")
    op.execute("DROP TABLE judgment")
    op.execute("DROP TABLE dropped_pairs")
    op.execute("DROP TABLE slot")
    op.execute("DROP TABLE assignment")
    op.execute("DROP TABLE candidate")
    op.execute("DROP TABLE comparison")
    op.execute("DROP TABLE demonstration")
    op.execute("DROP TABLE completion")
    op.execute("DROP TABLE prompt")
