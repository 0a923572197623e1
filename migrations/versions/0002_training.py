"""Checkpoints, snapshots, runs, and the pointer to the current policy."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE checkpoint (
            id UUID NOT NULL,
            project_id UUID NOT NULL,
            kind VARCHAR(16) NOT NULL,
            number INTEGER NOT NULL,
            name TEXT NOT NULL,
            run_id UUID,
            parent_id UUID,
            folder_name TEXT NOT NULL,
            files JSONB NOT NULL,
            metrics JSONB NOT NULL,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_checkpoint PRIMARY KEY (id),
            CONSTRAINT uq_checkpoint_project_id_id UNIQUE (project_id, id),
            CONSTRAINT uq_checkpoint_project_id_id_kind UNIQUE (project_id, id, kind),
            CONSTRAINT uq_checkpoint_project_id_kind_number UNIQUE (project_id, kind, number),
            CONSTRAINT uq_checkpoint_project_id_name UNIQUE (project_id, name),
            CONSTRAINT fk_checkpoint_project_id_parent_id
                FOREIGN KEY(project_id, parent_id) REFERENCES checkpoint (project_id, id),
            CONSTRAINT ck_checkpoint_number CHECK (number > 0),
            CONSTRAINT ck_checkpoint_folder_is_a_name CHECK (folder_name !~ '/' AND folder_name NOT IN ('', '.', '..')),
            CONSTRAINT fk_checkpoint_project_id FOREIGN KEY(project_id) REFERENCES project (id),
            CONSTRAINT ck_checkpoint_kind CHECK (kind IN ('policy', 'reward_model')),
            CONSTRAINT uq_checkpoint_folder_name UNIQUE (folder_name)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE promotion (
            id BIGINT GENERATED ALWAYS AS IDENTITY,
            project_id UUID NOT NULL,
            checkpoint_id UUID NOT NULL,
            previous_id UUID,
            rolled_back BOOLEAN NOT NULL,
            retired INTEGER NOT NULL,
            by_id UUID,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_promotion PRIMARY KEY (id),
            CONSTRAINT fk_promotion_project_id_checkpoint_id
                FOREIGN KEY(project_id, checkpoint_id) REFERENCES checkpoint (project_id, id),
            CONSTRAINT fk_promotion_project_id_previous_id
                FOREIGN KEY(project_id, previous_id) REFERENCES checkpoint (project_id, id),
            CONSTRAINT ck_promotion_retired CHECK (retired >= 0),
            CONSTRAINT fk_promotion_project_id FOREIGN KEY(project_id) REFERENCES project (id),
            CONSTRAINT fk_promotion_by_id FOREIGN KEY(by_id) REFERENCES account (id)
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_promotion_project_id ON promotion (project_id)
        """
    )
    op.execute(
        """
        CREATE TABLE snapshot (
            id UUID NOT NULL,
            project_id UUID NOT NULL,
            schema_version INTEGER NOT NULL,
            sha256 TEXT NOT NULL,
            query JSONB NOT NULL,
            train INTEGER NOT NULL,
            heldout INTEGER NOT NULL,
            created_by UUID,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_snapshot PRIMARY KEY (id),
            CONSTRAINT uq_snapshot_project_id_id UNIQUE (project_id, id),
            CONSTRAINT ck_snapshot_sha256 CHECK (sha256 ~ '^[0-9a-f]{64}$'),
            CONSTRAINT ck_snapshot_counts CHECK (train >= 0 AND heldout >= 0),
            CONSTRAINT fk_snapshot_project_id FOREIGN KEY(project_id) REFERENCES project (id),
            CONSTRAINT fk_snapshot_created_by FOREIGN KEY(created_by) REFERENCES account (id)
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_snapshot_project_id ON snapshot (project_id)
        """
    )
    op.execute(
        """
        CREATE TABLE run (
            id UUID NOT NULL,
            project_id UUID NOT NULL,
            number INTEGER NOT NULL,
            kind VARCHAR(16) NOT NULL,
            status VARCHAR(16) NOT NULL,
            config JSONB NOT NULL,
            seed BIGINT NOT NULL,
            policy_id UUID,
            reward_model_id UUID,
            after_run_id UUID,
            snapshot_id UUID,
            attempt INTEGER NOT NULL,
            worker_id TEXT,
            lease_expires_at TIMESTAMP WITH TIME ZONE,
            cancel_requested_at TIMESTAMP WITH TIME ZONE,
            step INTEGER NOT NULL,
            total INTEGER NOT NULL,
            phase TEXT NOT NULL,
            seconds_left DOUBLE PRECISION,
            metrics JSONB NOT NULL,
            error JSONB,
            created_by UUID,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            started_at TIMESTAMP WITH TIME ZONE,
            ended_at TIMESTAMP WITH TIME ZONE,
            CONSTRAINT pk_run PRIMARY KEY (id),
            CONSTRAINT uq_run_project_id_id UNIQUE (project_id, id),
            CONSTRAINT uq_run_project_id_number UNIQUE (project_id, number),
            CONSTRAINT fk_run_project_id_policy_id
                FOREIGN KEY(project_id, policy_id) REFERENCES checkpoint (project_id, id),
            CONSTRAINT fk_run_project_id_reward_model_id
                FOREIGN KEY(project_id, reward_model_id) REFERENCES checkpoint (project_id, id),
            CONSTRAINT fk_run_project_id_after_run_id
                FOREIGN KEY(project_id, after_run_id) REFERENCES run (project_id, id),
            CONSTRAINT fk_run_project_id_snapshot_id
                FOREIGN KEY(project_id, snapshot_id) REFERENCES snapshot (project_id, id),
            CONSTRAINT ck_run_counters CHECK (attempt >= 0 AND number > 0),
            CONSTRAINT ck_run_running_has_a_worker
                CHECK ((status = 'running') = (worker_id IS NOT NULL)
                AND (status = 'running') = (lease_expires_at IS NOT NULL)),
            CONSTRAINT ck_run_failed_says_why CHECK (status <> 'failed' OR error IS NOT NULL),
            CONSTRAINT ck_run_ended CHECK (status NOT IN ('finished', 'cancelled', 'failed') OR ended_at IS NOT NULL),
            CONSTRAINT ck_run_reward_reads_a_snapshot CHECK (kind <> 'reward' OR snapshot_id IS NOT NULL),
            CONSTRAINT ck_run_starts_from_a_policy CHECK (kind = 'sft' OR policy_id IS NOT NULL),
            CONSTRAINT ck_run_ppo_has_a_reward_model
                CHECK (kind <> 'ppo' OR reward_model_id IS NOT NULL OR after_run_id IS NOT NULL),
            CONSTRAINT ck_run_not_after_itself CHECK (after_run_id <> id),
            CONSTRAINT fk_run_project_id FOREIGN KEY(project_id) REFERENCES project (id),
            CONSTRAINT ck_run_kind CHECK (kind IN ('sft', 'reward', 'ppo')),
            CONSTRAINT ck_run_status
                CHECK (status IN ('queued', 'running', 'paused', 'finished', 'cancelled', 'failed')),
            CONSTRAINT fk_run_created_by FOREIGN KEY(created_by) REFERENCES account (id)
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_run_after_run_id ON run (after_run_id)
        """
    )
    op.execute(
        """
        CREATE INDEX ix_run_lease ON run (lease_expires_at) WHERE status = 'running'
        """
    )
    op.execute(
        """
        CREATE INDEX ix_run_queue ON run (created_at) WHERE status = 'queued'
        """
    )
    op.execute(
        """
        CREATE TABLE run_metric (
            id BIGINT GENERATED BY DEFAULT AS IDENTITY,
            project_id UUID NOT NULL,
            run_id UUID NOT NULL,
            attempt INTEGER NOT NULL,
            phase TEXT NOT NULL,
            step INTEGER NOT NULL,
            values JSONB NOT NULL,
            logged_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_run_metric PRIMARY KEY (id),
            CONSTRAINT fk_run_metric_project_id_run_id FOREIGN KEY(project_id, run_id) REFERENCES run (project_id, id),
            CONSTRAINT uq_run_metric_run_id_phase_step UNIQUE (run_id, phase, step)
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_run_metric_follow ON run_metric (run_id, id)
        """
    )
    op.execute(
        """
        CREATE TABLE run_sample (
            id BIGINT GENERATED BY DEFAULT AS IDENTITY,
            project_id UUID NOT NULL,
            run_id UUID NOT NULL,
            attempt INTEGER NOT NULL,
            step INTEGER NOT NULL,
            prompt_id TEXT NOT NULL,
            completion TEXT NOT NULL,
            reward DOUBLE PRECISION,
            logged_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_run_sample PRIMARY KEY (id),
            CONSTRAINT fk_run_sample_project_id_run_id FOREIGN KEY(project_id, run_id) REFERENCES run (project_id, id),
            CONSTRAINT uq_run_sample_run_id_step_prompt_id UNIQUE (run_id, step, prompt_id)
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_run_sample_follow ON run_sample (run_id, id)
        """
    )
    op.execute(
        """
        ALTER TABLE project ADD CONSTRAINT fk_project_current_policy
                FOREIGN KEY(id, current_policy_id, current_policy_kind) REFERENCES checkpoint (project_id, id, kind)
        """
    )
    op.execute(
        """
        ALTER TABLE checkpoint ADD CONSTRAINT fk_checkpoint_project_id_run_id
                FOREIGN KEY(project_id, run_id) REFERENCES run (project_id, id)
        """
    )


def downgrade() -> None:
    op.execute("ALTER TABLE project DROP CONSTRAINT fk_project_current_policy")
    op.execute("ALTER TABLE checkpoint DROP CONSTRAINT fk_checkpoint_project_id_run_id")
    op.execute("DROP TABLE run_sample")
    op.execute("DROP TABLE run_metric")
    op.execute("DROP TABLE run")
    op.execute("DROP TABLE snapshot")
    op.execute("DROP TABLE promotion")
    op.execute("DROP TABLE checkpoint")
