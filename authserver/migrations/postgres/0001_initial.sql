-- Times are seconds since the epoch. Secrets that somebody else holds are kept as SHA-256 digests.
-- The same tables as in migrations/sqlite, which says more on them.

CREATE TABLE people (
    id            TEXT   NOT NULL PRIMARY KEY,
    name          TEXT   NOT NULL UNIQUE,
    email         TEXT,
    groups        TEXT   NOT NULL DEFAULT '[]',
    password_hash TEXT,
    created_at    BIGINT NOT NULL,
    disabled_at   BIGINT
);

CREATE TABLE clients (
    id               TEXT NOT NULL PRIMARY KEY,
    kind             TEXT NOT NULL CHECK (kind IN ('gate', 'public', 'confidential')),
    secret_digest    BYTEA,
    redirect_uris    TEXT NOT NULL DEFAULT '[]',
    post_logout_uris TEXT NOT NULL DEFAULT '[]',
    scopes           TEXT NOT NULL DEFAULT '',
    CHECK ((kind = 'public') = (secret_digest IS NULL))
);

CREATE TABLE sessions (
    id            TEXT   NOT NULL PRIMARY KEY,
    secret_digest BYTEA  NOT NULL UNIQUE,
    person_id     TEXT   NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    method        TEXT   NOT NULL,
    created_at    BIGINT NOT NULL,
    used_at       BIGINT NOT NULL,
    expires_at    BIGINT NOT NULL,
    ended_at      BIGINT
);
CREATE INDEX sessions_by_person ON sessions (person_id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

CREATE TABLE grants (
    id         TEXT   NOT NULL PRIMARY KEY,
    session_id TEXT   NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    client_id  TEXT   NOT NULL REFERENCES clients (id) ON DELETE CASCADE,
    scope      TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    revoked_at BIGINT
);
CREATE INDEX grants_by_session ON grants (session_id);
CREATE INDEX grants_by_client ON grants (client_id);

CREATE TABLE codes (
    digest       BYTEA  NOT NULL PRIMARY KEY,
    grant_id     TEXT   NOT NULL REFERENCES grants (id) ON DELETE CASCADE,
    redirect_uri TEXT   NOT NULL,
    challenge    TEXT   NOT NULL,
    nonce        TEXT,
    expires_at   BIGINT NOT NULL,
    used_at      BIGINT
);
CREATE INDEX codes_by_grant ON codes (grant_id);

CREATE TABLE refresh_tokens (
    digest     BYTEA  NOT NULL PRIMARY KEY,
    grant_id   TEXT   NOT NULL REFERENCES grants (id) ON DELETE CASCADE,
    created_at BIGINT NOT NULL,
    used_at    BIGINT
);
CREATE INDEX refresh_tokens_by_grant ON refresh_tokens (grant_id);

CREATE TABLE access_tokens (
    jti        TEXT   NOT NULL PRIMARY KEY,
    grant_id   TEXT   NOT NULL REFERENCES grants (id) ON DELETE CASCADE,
    expires_at BIGINT NOT NULL,
    revoked_at BIGINT
);
CREATE INDEX access_tokens_by_grant ON access_tokens (grant_id);
CREATE INDEX access_tokens_by_expiry ON access_tokens (expires_at);

CREATE TABLE personal_tokens (
    jti        TEXT   NOT NULL PRIMARY KEY,
    person_id  TEXT   NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    name       TEXT   NOT NULL,
    audience   TEXT   NOT NULL,
    scope      TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    revoked_at BIGINT
);
CREATE INDEX personal_tokens_by_person ON personal_tokens (person_id);

CREATE TABLE ssh_keys (
    id          TEXT   NOT NULL PRIMARY KEY,
    person_id   TEXT   NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    name        TEXT   NOT NULL,
    fingerprint TEXT   NOT NULL UNIQUE,
    public_key  TEXT   NOT NULL,
    created_at  BIGINT NOT NULL,
    UNIQUE (person_id, name)
);

CREATE TABLE feeds (
    name    TEXT   NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL
);
INSERT INTO feeds (name, version) VALUES ('ssh-keys', 1);

CREATE FUNCTION bump_ssh_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE feeds SET version = version + 1 WHERE name = 'ssh-keys';
    RETURN NULL;
END $$;
CREATE TRIGGER ssh_keys_changed AFTER INSERT OR DELETE ON ssh_keys
    FOR EACH ROW EXECUTE FUNCTION bump_ssh_keys();
CREATE TRIGGER people_changed AFTER UPDATE ON people FOR EACH ROW
    WHEN (OLD.name IS DISTINCT FROM NEW.name OR OLD.email IS DISTINCT FROM NEW.email
        OR OLD.groups IS DISTINCT FROM NEW.groups
        OR OLD.disabled_at IS DISTINCT FROM NEW.disabled_at)
    EXECUTE FUNCTION bump_ssh_keys();

CREATE TABLE signing_keys (
    kid         TEXT   NOT NULL PRIMARY KEY,
    state       TEXT   NOT NULL CHECK (state IN ('next', 'active', 'retired')),
    private_key BYTEA  NOT NULL,
    created_at  BIGINT NOT NULL
);
CREATE UNIQUE INDEX one_active_signing_key ON signing_keys (state) WHERE state = 'active';

CREATE TABLE server_secrets (
    name   TEXT  NOT NULL PRIMARY KEY,
    secret BYTEA NOT NULL
);
