ALTER TABLE personal_tokens ADD COLUMN workload TEXT;
ALTER TABLE personal_tokens ADD COLUMN used_at BIGINT;
