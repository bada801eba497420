-- The only workload that a token reaches, as `project/name`.
ALTER TABLE personal_tokens ADD COLUMN workload TEXT;
-- The last use that is known, to the minute: here, or as a gateway tells it.
ALTER TABLE personal_tokens ADD COLUMN used_at INTEGER;
