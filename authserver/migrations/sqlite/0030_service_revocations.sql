CREATE TRIGGER service_token_revoked AFTER UPDATE OF revoked_at ON service_tokens
WHEN OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL
BEGIN
    INSERT INTO revocations (version, kind, id, expires_at)
    SELECT coalesce(max(version), 0) + 1, 'token', NEW.jti, 86400 + NEW.expires_at
    FROM revocations WHERE TRUE
    ON CONFLICT DO NOTHING;
END;
