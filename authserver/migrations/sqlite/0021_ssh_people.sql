-- The gateways' feed of SSH keys also names the people whom certificates may be about.
CREATE TRIGGER people_added AFTER INSERT ON people
BEGIN UPDATE feeds SET version = version + 1 WHERE name = 'ssh-keys'; END;
CREATE TRIGGER people_removed AFTER DELETE ON people
BEGIN UPDATE feeds SET version = version + 1 WHERE name = 'ssh-keys'; END;
CREATE TRIGGER service_accounts_changed AFTER INSERT ON service_accounts
BEGIN UPDATE feeds SET version = version + 1 WHERE name = 'ssh-keys'; END;
