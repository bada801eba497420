-- Each refresh writes here, so what it writes lies together: the tokens of a grant one behind the
-- other, and with each the access token that was issued along with it, whose `jti` is
-- `<grant>.<generation>`.
ALTER TABLE refresh_tokens
    DROP CONSTRAINT refresh_tokens_pkey,
    DROP COLUMN used_at,
    ADD COLUMN generation BIGINT,
    -- 0: a token that does not say where it is kept, as none did before. Nor do its successors.
    ADD COLUMN says_place BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN access_expires_at BIGINT, -- NULL: no access token was issued along with it
    ADD COLUMN access_revoked_at BIGINT;
UPDATE refresh_tokens r SET generation = n.generation FROM (
    SELECT digest, row_number() OVER (
        PARTITION BY grant_id ORDER BY rotated_at IS NULL, created_at, rotated_at) AS generation
    FROM refresh_tokens) n
WHERE r.digest = n.digest;
ALTER TABLE refresh_tokens ADD PRIMARY KEY (grant_id, generation);
DROP INDEX refresh_tokens_by_grant;
CREATE INDEX refresh_tokens_by_digest ON refresh_tokens (digest) WHERE says_place = 0;

-- What a grant gave goes with it. Tokens that expired an hour ago are of no interest to anybody.
CREATE FUNCTION grant_revoked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE access_tokens SET revoked_at = NEW.revoked_at
        WHERE grant_id = NEW.id AND revoked_at IS NULL;
    UPDATE refresh_tokens SET access_revoked_at = NEW.revoked_at
        WHERE grant_id = NEW.id AND access_revoked_at IS NULL
            AND access_expires_at > NEW.revoked_at - 3600;
    RETURN NULL;
END $$;
CREATE TRIGGER grant_revoked AFTER UPDATE OF revoked_at ON grants FOR EACH ROW
    WHEN (OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL) EXECUTE FUNCTION grant_revoked();

CREATE FUNCTION issued_token_revoked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM grants g JOIN sessions s ON s.id = g.session_id
                   WHERE g.id = NEW.grant_id AND s.ended_at IS NOT NULL) THEN
        PERFORM add_revocation(
            'token', NEW.grant_id || '.' || NEW.generation, NEW.access_expires_at);
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER issued_token_revoked AFTER UPDATE OF access_revoked_at ON refresh_tokens
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.access_revoked_at IS NULL AND NEW.access_revoked_at IS NOT NULL)
    EXECUTE FUNCTION issued_token_revoked();

CREATE OR REPLACE FUNCTION session_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM add_revocation('session', NEW.id, coalesce(
        (SELECT max(issued.expires_at) FROM (
            SELECT a.expires_at FROM access_tokens a JOIN grants g ON g.id = a.grant_id
            WHERE g.session_id = NEW.id
            UNION ALL
            SELECT r.access_expires_at FROM refresh_tokens r JOIN grants g ON g.id = r.grant_id
            WHERE g.session_id = NEW.id) issued), NEW.ended_at));
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION group_lost() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    at BIGINT := extract(epoch FROM now())::bigint;
BEGIN
    IF EXISTS (SELECT jsonb_array_elements_text(OLD.groups::jsonb)
               EXCEPT SELECT jsonb_array_elements_text(NEW.groups::jsonb)) THEN
        UPDATE access_tokens SET revoked_at = at WHERE revoked_at IS NULL AND grant_id IN
            (SELECT g.id FROM grants g JOIN sessions s ON s.id = g.session_id
             WHERE s.person_id = NEW.id);
        UPDATE refresh_tokens SET access_revoked_at = at
            WHERE access_revoked_at IS NULL AND access_expires_at > at - 3600 AND grant_id IN
            (SELECT g.id FROM grants g JOIN sessions s ON s.id = g.session_id
             WHERE s.person_id = NEW.id);
        UPDATE personal_tokens SET revoked_at = at
            WHERE revoked_at IS NULL AND person_id = NEW.id;
        UPDATE service_tokens SET revoked_at = at WHERE revoked_at IS NULL AND client_id IN
            (SELECT client_id FROM service_accounts WHERE person_id = NEW.id);
    END IF;
    RETURN NULL;
END $$;
