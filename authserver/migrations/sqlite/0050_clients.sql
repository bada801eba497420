-- Whose a client is: the settings' file says which ones of its own there are, and leaves those alone
-- that an operator made by command.
ALTER TABLE clients ADD COLUMN origin TEXT NOT NULL DEFAULT 'settings'
    CHECK (origin IN ('settings', 'operator'));
ALTER TABLE clients ADD COLUMN created_at INTEGER NOT NULL DEFAULT 0;

-- Servers keep the clients in memory, and see by this that they have changed.
INSERT INTO feeds (name, version) VALUES ('clients', 1);
CREATE TRIGGER clients_added AFTER INSERT ON clients
BEGIN UPDATE feeds SET version = version + 1 WHERE name = 'clients'; END;
CREATE TRIGGER clients_changed AFTER UPDATE ON clients
BEGIN UPDATE feeds SET version = version + 1 WHERE name = 'clients'; END;
CREATE TRIGGER clients_removed AFTER DELETE ON clients
BEGIN UPDATE feeds SET version = version + 1 WHERE name = 'clients'; END;
