-- When and how the person of a session last proved who they are. Older servers leave all of it empty:
-- then it was at `created_at` and by `method`, and for `fed` nobody knows.
ALTER TABLE sessions ADD COLUMN auth_time BIGINT;
ALTER TABLE sessions ADD COLUMN amr TEXT; -- JSON array of strings
ALTER TABLE sessions ADD COLUMN acr TEXT; -- as the provider said it

-- A password that signs nobody in: a second proof for who comes from a provider.
ALTER TABLE people ADD COLUMN proof_hash TEXT;
