CREATE FUNCTION group_lost() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    at BIGINT := extract(epoch FROM now())::bigint;
BEGIN
    IF EXISTS (SELECT jsonb_array_elements_text(OLD.groups::jsonb)
               EXCEPT SELECT jsonb_array_elements_text(NEW.groups::jsonb)) THEN
        UPDATE access_tokens SET revoked_at = at WHERE revoked_at IS NULL AND grant_id IN
            (SELECT g.id FROM grants g JOIN sessions s ON s.id = g.session_id
             WHERE s.person_id = NEW.id);
        UPDATE personal_tokens SET revoked_at = at
            WHERE revoked_at IS NULL AND person_id = NEW.id;
        UPDATE service_tokens SET revoked_at = at WHERE revoked_at IS NULL AND client_id IN
            (SELECT client_id FROM service_accounts WHERE person_id = NEW.id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER group_lost AFTER UPDATE OF groups ON people FOR EACH ROW
    WHEN (OLD.groups IS DISTINCT FROM NEW.groups) EXECUTE FUNCTION group_lost();
