CREATE CONSTRAINT TRIGGER service_token_revoked AFTER UPDATE OF revoked_at ON service_tokens
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL)
    EXECUTE FUNCTION token_revoked();
