-- Each refresh writes a row here. Their keys are in the order of time, so that the row itself may lie
-- where its key does: one tree less to write to.
CREATE TEMPORARY TABLE kept AS SELECT jti, grant_id, expires_at, revoked_at FROM access_tokens;
DROP TABLE access_tokens;
CREATE TABLE access_tokens (
    jti        TEXT    NOT NULL PRIMARY KEY,
    grant_id   TEXT    NOT NULL REFERENCES grants (id) ON DELETE CASCADE,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
) WITHOUT ROWID;
INSERT INTO access_tokens SELECT jti, grant_id, expires_at, revoked_at FROM kept;
DROP TABLE kept;
CREATE INDEX access_tokens_by_grant ON access_tokens (grant_id);
CREATE INDEX access_tokens_by_expiry ON access_tokens (expires_at);
CREATE TRIGGER access_token_revoked AFTER UPDATE OF revoked_at ON access_tokens
WHEN OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM grants g JOIN sessions s ON s.id = g.session_id
    WHERE g.id = NEW.grant_id AND s.ended_at IS NOT NULL)
BEGIN
    INSERT INTO revocations (version, kind, id, expires_at)
    SELECT coalesce(max(version), 0) + 1, 'token', NEW.jti, 86400 + NEW.expires_at
    FROM revocations WHERE TRUE
    ON CONFLICT DO NOTHING;
END;
