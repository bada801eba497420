//! The rows that the statements of an exchange work on.

use serde::Serialize;
use sqlx::{Any, Transaction};

use super::{Exchange, Verdict, statements::Statement};
use crate::{
    secret::hex,
    store::{Dialect, StoreError, refresh_token::Place, seconds},
};

/// What an exchange writes.
#[derive(Default)]
pub(super) struct Rows<'a> {
    pub touched: Vec<Fields<'a>>,
    pub ended: Vec<Fields<'a>>,
    pub rotated: Vec<Fields<'a>>,
    /// Access tokens that are not written down with a refresh token.
    pub recorded: Vec<Fields<'a>>,
}

impl<'a> Rows<'a> {
    pub fn of(verdicts: &'a [Verdict], exchanges: &[Exchange]) -> Self {
        let mut rows = Self::default();
        for (verdict, asked) in verdicts.iter().zip(exchanges) {
            let at = Some(asked.now.as_second());
            let (redeemed, place, first) = match verdict {
                Verdict::Refused(_) => continue,
                Verdict::Reused { grant_id, .. } => {
                    rows.ended.push(Fields { grant: Some(grant_id), at, ..NONE });
                    continue;
                }
                Verdict::Good { redeemed, place, first, touch } => {
                    if *touch {
                        let session = Some(redeemed.session.id.as_str());
                        rows.touched.push(Fields { session, at, ..NONE });
                    }
                    (redeemed, place, *first)
                }
            };
            let lifetime = redeemed.session.token_lifetime(asked.lifetime, asked.now);
            let end = Some(asked.now.as_second().saturating_add(seconds(lifetime)));
            match &redeemed.refresh_token {
                Some(next) if first => rows.rotated.push(Fields {
                    next: Some(hex(&next.digest())),
                    says: Some(Place::of_token(next.as_str()).is_some().into()),
                    at,
                    end,
                    ..Fields::at(place)
                }),
                _ => {
                    let (jti, grant) = (redeemed.recorded.as_deref(), Some(&*redeemed.grant_id));
                    rows.recorded.push(Fields { jti, grant, end, ..NONE });
                }
            }
        }
        // Whoever locks several does so in the same order.
        rows.touched.sort_unstable_by_key(|row| row.session);
        rows.rotated.sort_unstable_by_key(|row| (row.grant, row.generation));
        rows
    }
}

/// How many rows the statement touched, in PostgreSQL; nothing is run for nothing.
pub(super) async fn write_rows(
    tx: &mut Transaction<'static, Any>,
    rows: &[Fields<'_>],
    statement: Statement,
) -> Result<u64, StoreError> {
    if rows.is_empty() {
        return Ok(0);
    }
    let sql = statement.pick(Dialect::Postgres);
    Ok(sqlx::query(sql).bind(to_json(rows)?).execute(&mut **tx).await?.rows_affected())
}

/// One row of what the statements work on; each looks at some of the fields.
#[derive(Serialize)]
pub(super) struct Fields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// Digests in hexadecimal, as is `next`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// 1 when `next` says where it is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub says: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant: Option<&'a str>,
    #[serde(rename = "gen", skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jti: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<i64>,
}

const NONE: Fields<'static> = Fields {
    n: None,
    token: None,
    next: None,
    says: None,
    grant: None,
    generation: None,
    session: None,
    jti: None,
    at: None,
    end: None,
};

impl<'a> Fields<'a> {
    pub fn at(place: &'a Place) -> Self {
        Self { grant: Some(&place.grant_id), generation: Some(place.generation), ..NONE }
    }
}

pub(super) fn to_json(rows: &[Fields<'_>]) -> Result<String, StoreError> {
    serde_json::to_string(rows).map_err(|_| StoreError::Invalid("the rows cannot be written"))
}
