//! The statements of an exchange. Each works on the rows of a JSON array, its only parameter.

use std::sync::LazyLock;

use crate::store::Dialect;

/// The two SQLs differ in how they read JSON and bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Statement {
    sqlite: &'static str,
    postgres: &'static str,
}

impl Statement {
    pub fn pick(self, dialect: Dialect) -> &'static str {
        dialect.pick(self.sqlite, self.postgres)
    }
}

/// All that an exchange writes, for SQLite: each statement that is sent to a connection's thread
/// costs two changes of threads. Parameters: what is touched, ends, rotates, and is recorded.
pub(super) static WRITE_ALL: LazyLock<String> = LazyLock::new(|| {
    [(TOUCH, 1), (END_FAMILIES, 2), (SUCCEED, 3), (MARK, 3), (RECORD, 4)]
        .map(|(statement, parameter)| statement.sqlite.replace("$1", &format!("${parameter}")))
        .join("; ")
});

/// Of a digest: where a token is that does not say it.
pub(in crate::store) const OF_OLD_TOKEN: &str =
    "SELECT grant_id, generation FROM refresh_tokens WHERE digest = $1 AND says_place = 0";

/// Of a place: what is kept of the token there.
pub(super) const NEXT: &str =
    "SELECT digest FROM refresh_tokens WHERE grant_id = $1 AND generation = $2";

/// Of `n`, `grant`, `gen` and `token`: what is known of each token that there is. In PostgreSQL whoever takes a group
/// from the person or disables them at this moment has done so before us, or waits and then finds the
/// token that we have written down. People come before sessions, as where they are disabled.
pub(super) const READ: Statement = Statement {
    sqlite: "SELECT CAST(j.value->>'n' AS BIGINT) AS n, r.grant_id, g.client_id, g.scope,
                g.revoked_at, r.generation, r.rotated_at, x.resources, s.id AS sid, s.method,
                s.auth_time, s.amr, s.acr, s.created_at AS session_created_at, s.used_at, s.expires_at, s.ended_at,
                p.id, p.name, p.email, p.groups, p.disabled_at
         FROM json_each($1) j
         JOIN refresh_tokens r
             ON r.grant_id = j.value->>'grant'
                 AND r.generation = CAST(j.value->>'gen' AS BIGINT)
                 AND r.digest = unhex(j.value->>'token')
         JOIN grants g ON g.id = r.grant_id
         JOIN sessions s ON s.id = g.session_id
         JOIN people p ON p.id = s.person_id
         LEFT JOIN grant_resources x ON x.grant_id = g.id",
    postgres: "SELECT CAST(j.value->>'n' AS BIGINT) AS n, r.grant_id, g.client_id, g.scope,
                g.revoked_at, r.generation, r.rotated_at, x.resources, s.id AS sid, s.method,
                s.auth_time, s.amr, s.acr, s.created_at AS session_created_at, s.used_at, s.expires_at, s.ended_at,
                p.id, p.name, p.email, p.groups, p.disabled_at
         FROM jsonb_array_elements($1::jsonb) j
         JOIN refresh_tokens r
             ON r.grant_id = j.value->>'grant'
                 AND r.generation = CAST(j.value->>'gen' AS BIGINT)
                 AND r.digest = decode(j.value->>'token', 'hex')
         JOIN grants g ON g.id = r.grant_id
         JOIN sessions s ON s.id = g.session_id
         JOIN people p ON p.id = s.person_id
         LEFT JOIN grant_resources x ON x.grant_id = g.id
         FOR SHARE OF p",
};

/// Of `grant`, `gen`, `next`, `says`, `at` and `end`: the successor, and the access token beside it, unless
/// the grant has been withdrawn or another replica was faster. In PostgreSQL whoever withdraws it at
/// this moment does so before us, or sees our token.
pub(super) const SUCCEED: Statement = Statement {
    sqlite: "INSERT INTO refresh_tokens
            (grant_id, generation, digest, says_place, created_at, access_expires_at)
         SELECT j.value->>'grant', CAST(j.value->>'gen' AS BIGINT) + 1, unhex(j.value->>'next'),
                CAST(j.value->>'says' AS BIGINT),
                CAST(j.value->>'at' AS BIGINT), CAST(j.value->>'end' AS BIGINT)
         FROM json_each($1) j WHERE TRUE
         ON CONFLICT DO NOTHING",
    postgres: "INSERT INTO refresh_tokens
            (grant_id, generation, digest, says_place, created_at, access_expires_at)
         SELECT g.id, CAST(j.value->>'gen' AS BIGINT) + 1, decode(j.value->>'next', 'hex'),
                CAST(j.value->>'says' AS BIGINT),
                CAST(j.value->>'at' AS BIGINT), CAST(j.value->>'end' AS BIGINT)
         FROM jsonb_array_elements($1::jsonb) j JOIN grants g ON g.id = j.value->>'grant'
         WHERE g.revoked_at IS NULL FOR SHARE OF g
         ON CONFLICT DO NOTHING",
};

/// Of `grant`, `gen` and `at`: it was exchanged.
pub(super) const MARK: Statement = Statement {
    sqlite: "UPDATE refresh_tokens SET rotated_at = CAST(j.value->>'at' AS BIGINT)
         FROM json_each($1) j
         WHERE grant_id = j.value->>'grant' AND generation = CAST(j.value->>'gen' AS BIGINT)
             AND rotated_at IS NULL",
    postgres: "UPDATE refresh_tokens SET rotated_at = CAST(j.value->>'at' AS BIGINT)
         FROM jsonb_array_elements($1::jsonb) j
         WHERE grant_id = j.value->>'grant' AND generation = CAST(j.value->>'gen' AS BIGINT)
             AND rotated_at IS NULL",
};

/// Of `jti`, `grant` and `end`: an access token, unless its grant has been withdrawn. In PostgreSQL
/// whoever withdraws it at this moment does so before us, or sees our token.
pub(super) const RECORD: Statement = Statement {
    sqlite: "INSERT INTO access_tokens (jti, grant_id, expires_at)
         SELECT j.value->>'jti', g.id, CAST(j.value->>'end' AS BIGINT)
         FROM json_each($1) j JOIN grants g ON g.id = j.value->>'grant'
         WHERE g.revoked_at IS NULL",
    postgres: "INSERT INTO access_tokens (jti, grant_id, expires_at)
         SELECT j.value->>'jti', g.id, CAST(j.value->>'end' AS BIGINT)
         FROM jsonb_array_elements($1::jsonb) j JOIN grants g ON g.id = j.value->>'grant'
         WHERE g.revoked_at IS NULL FOR SHARE OF g",
};

/// Of `session` and `at`: it was used.
pub(super) const TOUCH: Statement = Statement {
    sqlite: "UPDATE sessions SET used_at = CAST(j.value->>'at' AS BIGINT)
         FROM json_each($1) j
         WHERE sessions.id = j.value->>'session' AND used_at < CAST(j.value->>'at' AS BIGINT)",
    postgres: "UPDATE sessions SET used_at = CAST(j.value->>'at' AS BIGINT)
         FROM jsonb_array_elements($1::jsonb) j
         WHERE sessions.id = j.value->>'session' AND used_at < CAST(j.value->>'at' AS BIGINT)",
};

/// Of `grant` and `at`: it is withdrawn, and with it what it gave.
pub(super) const END_FAMILIES: Statement = Statement {
    sqlite: "UPDATE grants SET revoked_at = CAST(j.value->>'at' AS BIGINT)
         FROM json_each($1) j
         WHERE grants.id = j.value->>'grant' AND revoked_at IS NULL",
    postgres: "UPDATE grants SET revoked_at = CAST(j.value->>'at' AS BIGINT)
         FROM jsonb_array_elements($1::jsonb) j
         WHERE grants.id = j.value->>'grant' AND revoked_at IS NULL",
};
