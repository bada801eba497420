-- What gateways must not let in any more although it has not expired by itself: sessions (`sid`) and
-- single tokens (`jti`). Written by triggers, so that no writer can forget it.
CREATE TABLE revocations (
    version    BIGINT NOT NULL PRIMARY KEY, -- of the feed: what is written later has a greater one
    kind       TEXT   NOT NULL CHECK (kind IN ('session', 'token')),
    id         TEXT   NOT NULL,
    expires_at BIGINT NOT NULL, -- from then on all that it is about has expired by itself
    UNIQUE (kind, id)
);
CREATE INDEX revocations_by_expiry ON revocations (expires_at);
CREATE SEQUENCE revocation_versions;

-- The lock is held until the transaction ends, so versions are seen in their order. Notifications
-- are all alike, for the server then sends one for a transaction. A day longer than the last token:
-- streams outlive the token that opened them, and a gateway that was cut off for a while has to hear
-- of it still.
CREATE FUNCTION add_revocation(what TEXT, which TEXT, last_token BIGINT) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('dormouse revocations', 0));
    INSERT INTO revocations (version, kind, id, expires_at)
    VALUES (nextval('revocation_versions'), what, which, last_token + 86400)
    ON CONFLICT DO NOTHING;
    PERFORM pg_notify('dormouse_revocations', '');
END $$;

-- The triggers are deferred to the commit: this lock is the last that a transaction takes, so no two
-- can wait for each other.
CREATE FUNCTION session_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_revocation('session', NEW.id, coalesce(
        (SELECT max(a.expires_at) FROM access_tokens a JOIN grants g ON g.id = a.grant_id
         WHERE g.session_id = NEW.id), NEW.ended_at));
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER session_ended AFTER UPDATE OF ended_at ON sessions
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL) EXECUTE FUNCTION session_ended();

-- Tokens of a session that is over are told of by the session.
CREATE FUNCTION access_token_revoked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM grants g JOIN sessions s ON s.id = g.session_id
                   WHERE g.id = NEW.grant_id AND s.ended_at IS NOT NULL) THEN
        PERFORM add_revocation('token', NEW.jti, NEW.expires_at);
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER access_token_revoked AFTER UPDATE OF revoked_at ON access_tokens
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL)
    EXECUTE FUNCTION access_token_revoked();

CREATE FUNCTION token_revoked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_revocation('token', NEW.jti, NEW.expires_at);
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER personal_token_revoked AFTER UPDATE OF revoked_at ON personal_tokens
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL)
    EXECUTE FUNCTION token_revoked();
