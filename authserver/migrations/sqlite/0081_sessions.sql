-- What people are shown of their sessions, and what signing out of a browser ends. Older servers leave
-- all of it empty.
ALTER TABLE sessions ADD COLUMN browser TEXT;   -- in which it began, or was approved: a digest
ALTER TABLE sessions ADD COLUMN client_id TEXT; -- of the device flow's client; NULL: a browser's own
ALTER TABLE sessions ADD COLUMN address TEXT;   -- where it began
ALTER TABLE sessions ADD COLUMN agent TEXT;     -- what the browser says that it is
CREATE INDEX sessions_by_browser ON sessions (browser) WHERE browser IS NOT NULL;

ALTER TABLE grants ADD COLUMN address TEXT;     -- where the browser was that it was given in
ALTER TABLE consents ADD COLUMN address TEXT;
