"""People, projects, and who did what."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE account (
            id UUID NOT NULL,
            kind VARCHAR(16) NOT NULL,
            username TEXT,
            username_key TEXT,
            password_hash TEXT,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            deactivated_at TIMESTAMP WITH TIME ZONE,
            erased_at TIMESTAMP WITH TIME ZONE,
            CONSTRAINT pk_account PRIMARY KEY (id),
            CONSTRAINT ck_account_username_with_key CHECK ((username IS NULL) = (username_key IS NULL)),
            CONSTRAINT ck_account_username_with_password CHECK ((username IS NULL) = (password_hash IS NULL)),
            CONSTRAINT ck_account_imported_cannot_sign_in CHECK (kind = 'person' OR username IS NULL),
            CONSTRAINT ck_account_person_signs_in
                CHECK (kind = 'imported' OR username IS NOT NULL OR erased_at IS NOT NULL),
            CONSTRAINT ck_account_kind CHECK (kind IN ('person', 'imported')),
            CONSTRAINT uq_account_username_key UNIQUE (username_key)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE owner (
            singleton BOOLEAN NOT NULL,
            account_id UUID NOT NULL,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_owner PRIMARY KEY (singleton),
            CONSTRAINT ck_owner_only_one CHECK (singleton),
            CONSTRAINT uq_owner_account_id UNIQUE (account_id),
            CONSTRAINT fk_owner_account_id FOREIGN KEY(account_id) REFERENCES account (id)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE setup_token (
            singleton BOOLEAN NOT NULL,
            token_hash BYTEA NOT NULL,
            expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_setup_token PRIMARY KEY (singleton),
            CONSTRAINT ck_setup_token_only_one CHECK (singleton)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE sign_in (
            token_hash BYTEA NOT NULL,
            account_id UUID NOT NULL,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
            CONSTRAINT pk_sign_in PRIMARY KEY (token_hash),
            CONSTRAINT fk_sign_in_account_id FOREIGN KEY(account_id) REFERENCES account (id)
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_sign_in_account_id ON sign_in (account_id)
        """
    )
    op.execute(
        """
        CREATE INDEX ix_sign_in_expires_at ON sign_in (expires_at)
        """
    )
    op.execute(
        """
        CREATE TABLE sign_in_throttle (
            name_hash BYTEA NOT NULL,
            attempts INTEGER DEFAULT 0 NOT NULL,
            since TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_sign_in_throttle PRIMARY KEY (name_hash)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE project (
            id UUID NOT NULL,
            slug TEXT NOT NULL,
            name TEXT NOT NULL,
            salt TEXT NOT NULL,
            heldout_share DOUBLE PRECISION NOT NULL,
            votes_wanted INTEGER NOT NULL,
            sampling JSONB NOT NULL,
            current_policy_id UUID,
            current_policy_kind TEXT GENERATED ALWAYS AS ('policy') STORED NOT NULL,
            pool_target INTEGER NOT NULL,
            lease_seconds INTEGER NOT NULL,
            guideline_version INTEGER NOT NULL,
            allow_tie BOOLEAN NOT NULL,
            allow_both_bad BOOLEAN NOT NULL,
            ask_strength BOOLEAN NOT NULL,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_project PRIMARY KEY (id),
            CONSTRAINT ck_project_slug_is_plain CHECK (slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
            CONSTRAINT ck_project_votes_wanted CHECK (votes_wanted BETWEEN 1 AND 100),
            CONSTRAINT ck_project_heldout_share CHECK (heldout_share > 0 AND heldout_share < 1),
            CONSTRAINT ck_project_lease_seconds CHECK (lease_seconds > 0),
            CONSTRAINT ck_project_pool_target CHECK (pool_target >= 0),
            CONSTRAINT uq_project_slug UNIQUE (slug)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE guideline (
            project_id UUID NOT NULL,
            version INTEGER NOT NULL,
            body TEXT NOT NULL,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_guideline PRIMARY KEY (project_id, version),
            CONSTRAINT fk_guideline_project_id FOREIGN KEY(project_id) REFERENCES project (id)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE membership (
            project_id UUID NOT NULL,
            account_id UUID NOT NULL,
            role VARCHAR(16) NOT NULL,
            pseudonym TEXT NOT NULL,
            source TEXT,
            joined_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            deactivated_at TIMESTAMP WITH TIME ZONE,
            CONSTRAINT pk_membership PRIMARY KEY (project_id, account_id),
            CONSTRAINT uq_membership_project_id_pseudonym UNIQUE (project_id, pseudonym),
            CONSTRAINT uq_membership_project_id_source UNIQUE (project_id, source),
            CONSTRAINT fk_membership_project_id FOREIGN KEY(project_id) REFERENCES project (id),
            CONSTRAINT fk_membership_account_id FOREIGN KEY(account_id) REFERENCES account (id),
            CONSTRAINT ck_membership_role CHECK (role IN ('annotator', 'researcher', 'admin'))
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_membership_account_id ON membership (account_id)
        """
    )
    op.execute(
        """
        CREATE TABLE invitation (
            id UUID NOT NULL,
            project_id UUID NOT NULL,
            role VARCHAR(16) NOT NULL,
            token_hash BYTEA NOT NULL,
            created_by UUID,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
            used_at TIMESTAMP WITH TIME ZONE,
            used_by UUID,
            CONSTRAINT pk_invitation PRIMARY KEY (id),
            CONSTRAINT ck_invitation_used_by_somebody CHECK ((used_at IS NULL) = (used_by IS NULL)),
            CONSTRAINT fk_invitation_project_id FOREIGN KEY(project_id) REFERENCES project (id),
            CONSTRAINT ck_invitation_role CHECK (role IN ('annotator', 'researcher', 'admin')),
            CONSTRAINT uq_invitation_token_hash UNIQUE (token_hash),
            CONSTRAINT fk_invitation_created_by FOREIGN KEY(created_by) REFERENCES account (id),
            CONSTRAINT fk_invitation_used_by FOREIGN KEY(used_by) REFERENCES account (id)
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_invitation_project_id ON invitation (project_id)
        """
    )
    op.execute(
        """
        CREATE TABLE audit_event (
            id BIGINT GENERATED ALWAYS AS IDENTITY,
            project_id UUID,
            account_id UUID,
            action TEXT NOT NULL,
            subject TEXT NOT NULL,
            detail JSONB NOT NULL,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
            CONSTRAINT pk_audit_event PRIMARY KEY (id),
            CONSTRAINT fk_audit_event_project_id FOREIGN KEY(project_id) REFERENCES project (id),
            CONSTRAINT fk_audit_event_account_id FOREIGN KEY(account_id) REFERENCES account (id)
        )
        """
    )
    op.execute(
        """
        CREATE INDEX ix_audit_event_project_id_id ON audit_event (project_id, id)
        """
    )
    op.execute(
        """
        ALTER TABLE project ADD CONSTRAINT fk_project_guideline
                FOREIGN KEY(id, guideline_version)
                REFERENCES guideline (project_id, version) DEFERRABLE INITIALLY DEFERRED
        """
    )


def downgrade() -> None:
    op.execute("ALTER TABLE project DROP CONSTRAINT fk_project_guideline")
    op.execute("DROP TABLE audit_event")
    op.execute("DROP TABLE invitation")
    op.execute("DROP TABLE membership")
    op.execute("DROP TABLE guideline")
    op.execute("DROP TABLE project")
    op.execute("DROP TABLE sign_in_throttle")
    op.execute("DROP TABLE sign_in")
    op.execute("DROP TABLE setup_token")
    op.execute("DROP TABLE owner")
    op.execute("DROP TABLE account")
