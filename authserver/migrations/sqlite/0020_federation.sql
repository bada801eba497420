-- Who a person is at another provider. E-mail addresses and names link nobody.
CREATE TABLE upstream_identities (
    issuer       TEXT    NOT NULL,
    subject      TEXT    NOT NULL,
    person_id    TEXT    NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    created_at   INTEGER NOT NULL,
    signed_in_at INTEGER,
    PRIMARY KEY (issuer, subject)
);
CREATE INDEX upstream_identities_by_person ON upstream_identities (person_id);

-- Sign-ins that are under way at a provider.
CREATE TABLE upstream_requests (
    digest     BLOB    NOT NULL PRIMARY KEY, -- of the state
    browser    TEXT    NOT NULL,
    provider   TEXT    NOT NULL,
    goal       TEXT    NOT NULL,             -- what the sign-in is for: JSON
    again      INTEGER NOT NULL,             -- 1: the person has to prove who they are again
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
);
CREATE INDEX upstream_requests_by_expiry ON upstream_requests (expires_at);

-- At which provider a session began, for ending the one there.
CREATE TABLE upstream_sessions (
    session_id TEXT NOT NULL PRIMARY KEY REFERENCES sessions (id) ON DELETE CASCADE,
    provider   TEXT NOT NULL,
    id_token   TEXT NOT NULL
);
