-- Times are seconds since the epoch. Secrets that somebody else holds are kept as SHA-256 digests.

CREATE TABLE people (
    id            TEXT    NOT NULL PRIMARY KEY, -- the subject (`sub`): never reused, never shown
    name          TEXT    NOT NULL UNIQUE,
    email         TEXT,
    groups        TEXT    NOT NULL DEFAULT '[]', -- JSON array of strings
    password_hash TEXT,                          -- PHC string; NULL: cannot sign in by password
    created_at    INTEGER NOT NULL,
    disabled_at   INTEGER
);

CREATE TABLE clients (
    id                 TEXT NOT NULL PRIMARY KEY,
    kind               TEXT NOT NULL CHECK (kind IN ('gate', 'public', 'confidential')),
    secret_digest      BLOB,
    redirect_uris      TEXT NOT NULL DEFAULT '[]', -- JSON array of strings, compared exactly
    post_logout_uris   TEXT NOT NULL DEFAULT '[]',
    scopes             TEXT NOT NULL DEFAULT '',   -- what it may ask for, separated by spaces
    CHECK ((kind = 'public') = (secret_digest IS NULL))
);

-- One sign-in of one browser.
CREATE TABLE sessions (
    id             TEXT    NOT NULL PRIMARY KEY, -- `sid` in tokens; not a secret
    secret_digest  BLOB    NOT NULL UNIQUE,      -- of the cookie
    person_id      TEXT    NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    method         TEXT    NOT NULL,             -- `amr` value (RFC 8176)
    created_at     INTEGER NOT NULL,             -- also `auth_time`
    used_at        INTEGER NOT NULL,
    expires_at     INTEGER NOT NULL,             -- at the latest; earlier when idle
    ended_at       INTEGER
);
CREATE INDEX sessions_by_person ON sessions (person_id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

-- What a person has let a client do, within one session.
CREATE TABLE grants (
    id         TEXT    NOT NULL PRIMARY KEY,
    session_id TEXT    NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    client_id  TEXT    NOT NULL REFERENCES clients (id) ON DELETE CASCADE,
    scope      TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
);
CREATE INDEX grants_by_session ON grants (session_id);

CREATE TABLE codes (
    digest       BLOB    NOT NULL PRIMARY KEY,
    grant_id     TEXT    NOT NULL REFERENCES grants (id) ON DELETE CASCADE,
    redirect_uri TEXT    NOT NULL,
    challenge    TEXT    NOT NULL, -- PKCE, S256
    nonce        TEXT,
    expires_at   INTEGER NOT NULL,
    used_at      INTEGER
);
CREATE INDEX codes_by_grant ON codes (grant_id);

CREATE TABLE refresh_tokens (
    digest     BLOB    NOT NULL PRIMARY KEY,
    grant_id   TEXT    NOT NULL REFERENCES grants (id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL,
    used_at    INTEGER
);
CREATE INDEX refresh_tokens_by_grant ON refresh_tokens (grant_id);

-- Access tokens that are still alive, so that what a grant issued can be withdrawn.
CREATE TABLE access_tokens (
    jti        TEXT    NOT NULL PRIMARY KEY,
    grant_id   TEXT    NOT NULL REFERENCES grants (id) ON DELETE CASCADE,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
);
CREATE INDEX access_tokens_by_grant ON access_tokens (grant_id);
CREATE INDEX access_tokens_by_expiry ON access_tokens (expires_at);

CREATE TABLE personal_tokens (
    jti        TEXT    NOT NULL PRIMARY KEY,
    person_id  TEXT    NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    name       TEXT    NOT NULL,
    audience   TEXT    NOT NULL,
    scope      TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
);
CREATE INDEX personal_tokens_by_person ON personal_tokens (person_id);

CREATE TABLE ssh_keys (
    id          TEXT    NOT NULL PRIMARY KEY,
    person_id   TEXT    NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    name        TEXT    NOT NULL,
    fingerprint TEXT    NOT NULL UNIQUE,
    public_key  TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    UNIQUE (person_id, name)
);

-- Versions of what gateways follow. They only ever grow.
CREATE TABLE feeds (
    name    TEXT    NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL
);
INSERT INTO feeds (name, version) VALUES ('ssh-keys', 1);

-- Bumping in triggers: no writer, be it this server or an operator's command, can forget it.
CREATE TRIGGER ssh_keys_added AFTER INSERT ON ssh_keys
BEGIN UPDATE feeds SET version = version + 1 WHERE name = 'ssh-keys'; END;
CREATE TRIGGER ssh_keys_removed AFTER DELETE ON ssh_keys
BEGIN UPDATE feeds SET version = version + 1 WHERE name = 'ssh-keys'; END;
CREATE TRIGGER people_changed AFTER UPDATE OF name, email, groups, disabled_at ON people
WHEN OLD.name IS NOT NEW.name OR OLD.email IS NOT NEW.email OR OLD.groups IS NOT NEW.groups
    OR OLD.disabled_at IS NOT NEW.disabled_at
BEGIN UPDATE feeds SET version = version + 1 WHERE name = 'ssh-keys'; END;

CREATE TABLE signing_keys (
    kid         TEXT    NOT NULL PRIMARY KEY,
    -- `next` is published before it signs, `retired` is published until what it signed has expired.
    state       TEXT    NOT NULL CHECK (state IN ('next', 'active', 'retired')),
    private_key BLOB    NOT NULL, -- PKCS #8, DER
    created_at  INTEGER NOT NULL
);
CREATE UNIQUE INDEX one_active_signing_key ON signing_keys (state) WHERE state = 'active';

-- Keys that never leave the server: of sign-in tickets and device cookies.
CREATE TABLE server_secrets (
    name   TEXT NOT NULL PRIMARY KEY,
    secret BLOB NOT NULL
);
