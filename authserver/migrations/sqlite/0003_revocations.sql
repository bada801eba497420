-- What gateways must not let in any more although it has not expired by itself: sessions (`sid`) and
-- single tokens (`jti`). Written by triggers, so that no writer can forget it.
CREATE TABLE revocations (
    version    INTEGER NOT NULL PRIMARY KEY, -- of the feed: what is written later has a greater one
    kind       TEXT    NOT NULL CHECK (kind IN ('session', 'token')),
    id         TEXT    NOT NULL,
    expires_at INTEGER NOT NULL, -- from then on all that it is about has expired by itself
    UNIQUE (kind, id)
);
CREATE INDEX revocations_by_expiry ON revocations (expires_at);

-- A day longer than the last token: streams outlive the token that opened them, and a gateway that
-- was cut off for a while has to hear of it still.
CREATE TRIGGER session_ended AFTER UPDATE OF ended_at ON sessions
WHEN OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL
BEGIN
    INSERT INTO revocations (version, kind, id, expires_at)
    SELECT coalesce(max(version), 0) + 1, 'session', NEW.id, 86400 + coalesce(
        (SELECT max(a.expires_at) FROM access_tokens a JOIN grants g ON g.id = a.grant_id
         WHERE g.session_id = NEW.id), NEW.ended_at)
    FROM revocations WHERE TRUE
    ON CONFLICT DO NOTHING;
END;

-- Tokens of a session that is over are told of by the session.
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

CREATE TRIGGER personal_token_revoked AFTER UPDATE OF revoked_at ON personal_tokens
WHEN OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL
BEGIN
    INSERT INTO revocations (version, kind, id, expires_at)
    SELECT coalesce(max(version), 0) + 1, 'token', NEW.jti, 86400 + NEW.expires_at
    FROM revocations WHERE TRUE
    ON CONFLICT DO NOTHING;
END;
