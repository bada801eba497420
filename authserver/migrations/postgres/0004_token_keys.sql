-- Signing keys by the time from which they sign: every server that has the same keys and the same
-- time signs with the same one, and nobody has to change a state at the right moment.
CREATE TABLE token_keys (
    kid         TEXT    NOT NULL PRIMARY KEY,
    private_key BYTEA   NOT NULL, -- PKCS #8 in DER, sealed when there is a master key
    created_at  BIGINT  NOT NULL, -- published since then
    active_from BIGINT  NOT NULL  -- signs until another one does
);
INSERT INTO token_keys (kid, private_key, created_at, active_from)
SELECT kid, private_key, created_at, created_at FROM signing_keys;
DROP TABLE signing_keys;
INSERT INTO feeds (name, version) VALUES ('token-keys', 1);
