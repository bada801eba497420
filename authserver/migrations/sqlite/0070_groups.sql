-- What each side says of a person's groups. `people.groups` stays what counts: those that an operator
-- gives, and those that providers say.
--
-- In a table of its own: servers of the version before read all columns of `people`.
CREATE TABLE operator_groups (
    person_id TEXT NOT NULL PRIMARY KEY REFERENCES people (id) ON DELETE CASCADE,
    groups    TEXT NOT NULL -- JSON array of strings
);

-- What the provider said last, by our names; NULL: nothing since these columns are there.
ALTER TABLE upstream_identities ADD COLUMN groups TEXT;
ALTER TABLE upstream_identities ADD COLUMN groups_at INTEGER;
-- Those, by the provider's names, that let the person in.
ALTER TABLE upstream_identities ADD COLUMN admitted TEXT;
-- The first sign-in since then at which it said nothing; NULL: it said something at the last one.
ALTER TABLE upstream_identities ADD COLUMN silent_since INTEGER;
