-- Tokens say which groups their holder is in. Whoever leaves one has to be seen without it: tokens
-- of a session are replaced by the next refresh, personal ones have to be made anew.
CREATE TRIGGER group_lost AFTER UPDATE OF groups ON people
WHEN EXISTS (SELECT value FROM json_each(OLD.groups) EXCEPT SELECT value FROM json_each(NEW.groups))
BEGIN
    UPDATE access_tokens SET revoked_at = unixepoch() WHERE revoked_at IS NULL AND grant_id IN
        (SELECT g.id FROM grants g JOIN sessions s ON s.id = g.session_id WHERE s.person_id = NEW.id);
    UPDATE personal_tokens SET revoked_at = unixepoch()
        WHERE revoked_at IS NULL AND person_id = NEW.id;
    UPDATE service_tokens SET revoked_at = unixepoch() WHERE revoked_at IS NULL AND client_id IN
        (SELECT client_id FROM service_accounts WHERE person_id = NEW.id);
END;
