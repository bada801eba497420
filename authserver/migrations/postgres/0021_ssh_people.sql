-- The gateways' feed of SSH keys also names the people whom certificates may be about.
CREATE TRIGGER people_added AFTER INSERT OR DELETE ON people
    FOR EACH ROW EXECUTE FUNCTION bump_ssh_keys();
CREATE TRIGGER service_accounts_added AFTER INSERT ON service_accounts
    FOR EACH ROW EXECUTE FUNCTION bump_ssh_keys();
