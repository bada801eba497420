-- Passkeys of people who sign in here.
CREATE TABLE passkeys (
    id            TEXT   NOT NULL PRIMARY KEY,
    person_id     TEXT   NOT NULL REFERENCES people (id) ON DELETE CASCADE,
    name          TEXT   NOT NULL,
    credential_id BYTEA  NOT NULL UNIQUE,
    credential    TEXT   NOT NULL, -- JSON: the public key and what belongs to it
    counter       BIGINT NOT NULL, -- of signatures; 0 when it does not count
    created_at    BIGINT NOT NULL,
    used_at       BIGINT,
    blocked_at    BIGINT,           -- its counter went back: a copy may be in use
    UNIQUE (person_id, name)
);

-- Challenges that were answered, until they expire by themselves.
CREATE TABLE used_challenges (
    digest     BYTEA  NOT NULL PRIMARY KEY,
    expires_at BIGINT NOT NULL
);
CREATE INDEX used_challenges_by_expiry ON used_challenges (expires_at);
