-- Each refresh writes here, so what it writes lies together: the tokens of a grant one behind the
-- other, and with each the access token that was issued along with it, whose `jti` is
-- `<grant>.<generation>`.
CREATE TABLE families (
    grant_id          TEXT    NOT NULL REFERENCES grants (id) ON DELETE CASCADE,
    generation        INTEGER NOT NULL,
    digest            BLOB    NOT NULL,
    -- 0: a token that does not say where it is kept, as none did before. Nor do its successors.
    says_place        INTEGER NOT NULL DEFAULT 0,
    created_at        INTEGER NOT NULL,
    rotated_at        INTEGER, -- when it was first exchanged for its successor
    access_expires_at INTEGER, -- NULL: no access token was issued along with it
    access_revoked_at INTEGER,
    PRIMARY KEY (grant_id, generation)
) WITHOUT ROWID;
INSERT INTO families (grant_id, generation, digest, created_at, rotated_at)
    SELECT grant_id,
        row_number() OVER (PARTITION BY grant_id ORDER BY rotated_at IS NULL, created_at, rotated_at),
        digest, created_at, rotated_at
    FROM refresh_tokens;
DROP TABLE refresh_tokens;
ALTER TABLE families RENAME TO refresh_tokens;
CREATE INDEX refresh_tokens_by_digest ON refresh_tokens (digest) WHERE says_place = 0;
CREATE INDEX refresh_tokens_by_rotation ON refresh_tokens (rotated_at) WHERE rotated_at IS NOT NULL;

-- What a grant gave goes with it. Tokens that expired an hour ago are of no interest to anybody.
CREATE TRIGGER grant_revoked AFTER UPDATE OF revoked_at ON grants
WHEN OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL
BEGIN
    UPDATE access_tokens SET revoked_at = NEW.revoked_at
        WHERE grant_id = NEW.id AND revoked_at IS NULL;
    UPDATE refresh_tokens SET access_revoked_at = NEW.revoked_at
        WHERE grant_id = NEW.id AND access_revoked_at IS NULL
            AND access_expires_at > NEW.revoked_at - 3600;
END;

CREATE TRIGGER issued_token_revoked AFTER UPDATE OF access_revoked_at ON refresh_tokens
WHEN OLD.access_revoked_at IS NULL AND NEW.access_revoked_at IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM grants g JOIN sessions s ON s.id = g.session_id
    WHERE g.id = NEW.grant_id AND s.ended_at IS NOT NULL)
BEGIN
    INSERT INTO revocations (version, kind, id, expires_at)
    SELECT coalesce(max(version), 0) + 1, 'token',
        NEW.grant_id || '.' || NEW.generation, 86400 + NEW.access_expires_at
    FROM revocations WHERE TRUE
    ON CONFLICT DO NOTHING;
END;

DROP TRIGGER session_ended;
CREATE TRIGGER session_ended AFTER UPDATE OF ended_at ON sessions
WHEN OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL
BEGIN
    INSERT INTO revocations (version, kind, id, expires_at)
    SELECT coalesce(max(version), 0) + 1, 'session', NEW.id, 86400 + coalesce(
        (SELECT max(expires_at) FROM (
            SELECT a.expires_at FROM access_tokens a JOIN grants g ON g.id = a.grant_id
            WHERE g.session_id = NEW.id
            UNION ALL
            SELECT r.access_expires_at FROM refresh_tokens r JOIN grants g ON g.id = r.grant_id
            WHERE g.session_id = NEW.id)), NEW.ended_at)
    FROM revocations WHERE TRUE
    ON CONFLICT DO NOTHING;
END;

DROP TRIGGER group_lost;
CREATE TRIGGER group_lost AFTER UPDATE OF groups ON people
WHEN EXISTS (SELECT value FROM json_each(OLD.groups) EXCEPT SELECT value FROM json_each(NEW.groups))
BEGIN
    UPDATE access_tokens SET revoked_at = unixepoch() WHERE revoked_at IS NULL AND grant_id IN
        (SELECT g.id FROM grants g JOIN sessions s ON s.id = g.session_id WHERE s.person_id = NEW.id);
    UPDATE refresh_tokens SET access_revoked_at = unixepoch()
        WHERE access_revoked_at IS NULL AND access_expires_at > unixepoch() - 3600 AND grant_id IN
        (SELECT g.id FROM grants g JOIN sessions s ON s.id = g.session_id WHERE s.person_id = NEW.id);
    UPDATE personal_tokens SET revoked_at = unixepoch()
        WHERE revoked_at IS NULL AND person_id = NEW.id;
    UPDATE service_tokens SET revoked_at = unixepoch() WHERE revoked_at IS NULL AND client_id IN
        (SELECT client_id FROM service_accounts WHERE person_id = NEW.id);
END;
