ALTER TABLE clients ADD COLUMN origin TEXT NOT NULL DEFAULT 'settings'
    CHECK (origin IN ('settings', 'operator'));
ALTER TABLE clients ADD COLUMN created_at BIGINT NOT NULL DEFAULT 0;

INSERT INTO feeds (name, version) VALUES ('clients', 1);
CREATE FUNCTION bump_clients() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE feeds SET version = version + 1 WHERE name = 'clients';
    RETURN NULL;
END $$;
CREATE TRIGGER clients_changed AFTER INSERT OR UPDATE OR DELETE ON clients
    FOR EACH STATEMENT EXECUTE FUNCTION bump_clients();
