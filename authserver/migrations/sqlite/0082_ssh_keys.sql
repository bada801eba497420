-- Keys have an end, and what was made with a token ends with it. In a table of their own: older
-- servers read `ssh_keys` with all its columns, and must not find more of them.
CREATE TABLE ssh_key_lives (
    key_id     TEXT    NOT NULL PRIMARY KEY REFERENCES ssh_keys (id) ON DELETE CASCADE,
    expires_at INTEGER NOT NULL,
    used_at    INTEGER,          -- to the minute, as gateways tell it
    proven_at  INTEGER,          -- NULL: nobody has shown that they have the key
    grant_id   TEXT REFERENCES grants (id) ON DELETE CASCADE -- of the token that it was made with
);
CREATE INDEX ssh_key_lives_by_grant ON ssh_key_lives (grant_id) WHERE grant_id IS NOT NULL;

-- A year after they were made; whoever has had one for longer gets 90 days to see the notice on their
-- account page and register it again. A key that an older server adds has no row: it ends a year
-- after it was made.
INSERT INTO ssh_key_lives (key_id, expires_at)
    SELECT id, max(created_at + 31536000, unixepoch() + 7776000) FROM ssh_keys;

CREATE TRIGGER ssh_key_lives_changed AFTER UPDATE OF expires_at ON ssh_key_lives
BEGIN UPDATE feeds SET version = version + 1 WHERE name = 'ssh-keys'; END;
CREATE TRIGGER ssh_keys_of_grant AFTER UPDATE OF revoked_at ON grants
WHEN OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL
BEGIN
    DELETE FROM ssh_keys WHERE id IN (SELECT key_id FROM ssh_key_lives WHERE grant_id = NEW.id);
END;
CREATE TRIGGER ssh_keys_of_session AFTER UPDATE OF ended_at ON sessions
WHEN OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL
BEGIN
    DELETE FROM ssh_keys WHERE id IN (SELECT l.key_id FROM ssh_key_lives l
        JOIN grants g ON g.id = l.grant_id WHERE g.session_id = NEW.id);
END;
-- Its session may also be over by itself, and be deleted with all that it gave.
CREATE TRIGGER ssh_key_life_over AFTER DELETE ON ssh_key_lives WHEN OLD.grant_id IS NOT NULL
BEGIN DELETE FROM ssh_keys WHERE id = OLD.key_id; END;
