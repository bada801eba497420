-- Keys have an end, and what was made with a token ends with it. In a table of their own: older
-- servers read `ssh_keys` with all its columns, and must not find more of them.
CREATE TABLE ssh_key_lives (
    key_id     TEXT NOT NULL PRIMARY KEY REFERENCES ssh_keys (id) ON DELETE CASCADE,
    expires_at BIGINT NOT NULL,
    used_at    BIGINT,          -- to the minute, as gateways tell it
    proven_at  BIGINT,          -- NULL: nobody has shown that they have the key
    grant_id   TEXT REFERENCES grants (id) ON DELETE CASCADE -- of the token that it was made with
);
CREATE INDEX ssh_key_lives_by_grant ON ssh_key_lives (grant_id) WHERE grant_id IS NOT NULL;

-- A year after they were made; whoever has had one for longer gets 90 days to see the notice on their
-- account page and register it again. A key that an older server adds has no row: it ends a year
-- after it was made.
INSERT INTO ssh_key_lives (key_id, expires_at)
    SELECT id, greatest(created_at + 31536000, extract(epoch FROM now())::bigint + 7776000) FROM ssh_keys;

CREATE TRIGGER ssh_key_lives_changed AFTER UPDATE OF expires_at ON ssh_key_lives
    FOR EACH ROW EXECUTE FUNCTION bump_ssh_keys();

CREATE FUNCTION ssh_keys_of_grant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM ssh_keys WHERE id IN (SELECT key_id FROM ssh_key_lives WHERE grant_id = NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER ssh_keys_of_grant AFTER UPDATE OF revoked_at ON grants FOR EACH ROW
    WHEN (OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL)
    EXECUTE FUNCTION ssh_keys_of_grant();

CREATE FUNCTION ssh_keys_of_session() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM ssh_keys WHERE id IN (SELECT l.key_id FROM ssh_key_lives l
        JOIN grants g ON g.id = l.grant_id WHERE g.session_id = NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER ssh_keys_of_session AFTER UPDATE OF ended_at ON sessions FOR EACH ROW
    WHEN (OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL)
    EXECUTE FUNCTION ssh_keys_of_session();

-- Its session may also be over by itself, and be deleted with all that it gave.
CREATE FUNCTION ssh_key_life_over() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM ssh_keys WHERE id = OLD.key_id;
    RETURN NULL;
END $$;
CREATE TRIGGER ssh_key_life_over AFTER DELETE ON ssh_key_lives FOR EACH ROW
    WHEN (OLD.grant_id IS NOT NULL) EXECUTE FUNCTION ssh_key_life_over();
