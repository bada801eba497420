-- What a client is beyond its secret and its addresses: JSON, see `client::Profile`.
ALTER TABLE clients ADD COLUMN profile TEXT NOT NULL DEFAULT '{}';

-- Client assertions that were used, until they expire by themselves (RFC 7523, section 3, item 7).
CREATE TABLE used_assertions (
    digest     BLOB    NOT NULL PRIMARY KEY, -- of the client and the jti
    expires_at INTEGER NOT NULL
);
CREATE INDEX used_assertions_by_expiry ON used_assertions (expires_at);

-- Programs that act for themselves. Each has a row among the people, so that names are never shared
-- and what withdraws a person's rights withdraws theirs.
CREATE TABLE service_accounts (
    client_id     TEXT    NOT NULL PRIMARY KEY,
    person_id     TEXT    NOT NULL UNIQUE REFERENCES people (id) ON DELETE CASCADE,
    scopes        TEXT    NOT NULL,
    workload      TEXT,                       -- the only one that its tokens reach
    secret_digest BLOB,
    keys          TEXT,                       -- a JSON Web Key Set
    created_at    INTEGER NOT NULL,
    expires_at    INTEGER,
    used_at       INTEGER,
    revoked_at    INTEGER,
    CHECK (secret_digest IS NOT NULL OR keys IS NOT NULL)
);

CREATE TABLE service_tokens (
    jti        TEXT    NOT NULL PRIMARY KEY,
    client_id  TEXT    NOT NULL REFERENCES service_accounts (client_id) ON DELETE CASCADE,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
);
CREATE INDEX service_tokens_by_client ON service_tokens (client_id);
CREATE INDEX service_tokens_by_expiry ON service_tokens (expires_at);

-- The audiences of a grant that has any but the usual one: a JSON array (RFC 8707).
CREATE TABLE grant_resources (
    grant_id  TEXT NOT NULL PRIMARY KEY REFERENCES grants (id) ON DELETE CASCADE,
    resources TEXT NOT NULL
);

-- Devices that wait for somebody to approve them (RFC 8628).
CREATE TABLE devices (
    digest        BLOB    NOT NULL PRIMARY KEY, -- of the device code
    code_digest   BLOB    NOT NULL UNIQUE,      -- of what people type
    client_id     TEXT    NOT NULL REFERENCES clients (id) ON DELETE CASCADE,
    scope         TEXT    NOT NULL,
    resources     TEXT    NOT NULL DEFAULT '[]',
    address       TEXT    NOT NULL,             -- where it asked from
    created_at    INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL,
    asked_at      INTEGER,
    poll_interval INTEGER NOT NULL,
    decision      TEXT    NOT NULL CHECK (decision IN ('pending', 'approved', 'denied')),
    session_id    TEXT    REFERENCES sessions (id) ON DELETE CASCADE, -- whose approval it was
    used_at       INTEGER
);
CREATE INDEX devices_by_expiry ON devices (expires_at);

-- Authorization requests that a client sent us itself (RFC 9126).
CREATE TABLE pushed_requests (
    digest     BLOB    NOT NULL PRIMARY KEY, -- of the random part of the request_uri
    client_id  TEXT    NOT NULL REFERENCES clients (id) ON DELETE CASCADE,
    query      TEXT    NOT NULL,
    expires_at INTEGER NOT NULL
);
CREATE INDEX pushed_requests_by_expiry ON pushed_requests (expires_at);

-- What people let clients of third parties do.
CREATE TABLE consents (
    person_id  TEXT    NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    client_id  TEXT    NOT NULL REFERENCES clients (id) ON DELETE CASCADE,
    scope      TEXT    NOT NULL,
    resources  TEXT    NOT NULL DEFAULT '[]',
    granted_at INTEGER NOT NULL,
    PRIMARY KEY (person_id, client_id)
);

-- Clients that have to be told that a session is over (OpenID Connect Back-Channel Logout 1.0).
CREATE TABLE logout_notices (
    session_id TEXT    NOT NULL,
    client_id  TEXT    NOT NULL REFERENCES clients (id) ON DELETE CASCADE,
    subject    TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    tries      INTEGER NOT NULL DEFAULT 0,
    next_at    INTEGER NOT NULL,
    done_at    INTEGER,
    PRIMARY KEY (session_id, client_id)
);
CREATE INDEX logout_notices_by_time ON logout_notices (done_at, next_at);
