-- When a refresh token was first exchanged for its successor. `used_at` meant any use of a token
-- that stayed the same, so it is not taken over: tokens of running sessions have their first
-- rotation before them.
ALTER TABLE refresh_tokens ADD COLUMN rotated_at BIGINT;
CREATE INDEX refresh_tokens_by_rotation ON refresh_tokens (rotated_at) WHERE rotated_at IS NOT NULL;
