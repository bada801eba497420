//! Devices that wait to be approved (RFC 8628).

use std::{net::IpAddr, time::Duration};

use jiff::Timestamp;
use sqlx::FromRow;
use uuid::Uuid;

use super::{NewCode, RedeemError, Redeemed, Store, StoreError, list, seconds, time, to_json};
use crate::{
    device::{self, Answer, Decision, UserCode, Waiting},
    pkce,
    secret::{Secret, digest},
};

/// Devices that wait at once, in all. Past that nobody new is let in for a while.
const WAITING_MAX: i64 = 10_000;

#[derive(Debug)]
pub struct NewDevice<'a> {
    pub client_id: &'a str,
    pub scope: &'a str,
    pub resources: &'a [String],
    /// Where the device is, as far as the network knows.
    pub address: IpAddr,
}

/// What the page shows of it.
#[derive(Debug, Clone)]
pub struct Device {
    pub client_id: String,
    pub scope: String,
    pub resources: Vec<String>,
    pub address: String,
    pub created_at: Timestamp,
}

/// An approved device: what it is to be given, and by whom.
#[derive(Debug)]
pub struct Approved {
    pub scope: String,
    pub resources: Vec<String>,
    /// Whose approval it was.
    pub session_id: String,
    /// Where the device asked from.
    pub address: String,
}

/// What came of a device's question.
#[derive(Debug)]
pub enum Asked {
    /// Not known, another client's, or used before.
    Unknown,
    Told(Answer),
    /// And its codes are spent.
    Approved(Approved),
}

#[derive(FromRow)]
struct Row {
    client_id: String,
    scope: String,
    resources: String,
    address: String,
    created_at: i64,
    expires_at: i64,
    asked_at: Option<i64>,
    poll_interval: i64,
    decision: String,
    session_id: Option<String>,
    used_at: Option<i64>,
}

const COLUMNS: &str = "client_id, scope, resources, address, created_at, expires_at, asked_at,
    poll_interval, decision, session_id, used_at";

/// A device's session: the person's who approved it, in the same browser, as old as their own proof.
const BEGIN: &str =
    "INSERT INTO sessions (id, secret_digest, person_id, method, created_at, used_at,
        expires_at, client_id, address, browser, auth_time, amr, acr)
    SELECT $1, $2, s.person_id, s.method, s.created_at, $3, $4, $5, $6, s.browser, s.auth_time,
        s.amr, s.acr
    FROM sessions s JOIN people p ON p.id = s.person_id
    WHERE s.id = $7 AND s.ended_at IS NULL AND p.disabled_at IS NULL";
const BEGIN_LOCKED: &str = "INSERT INTO sessions (id, secret_digest, person_id, method, created_at,
        used_at, expires_at, client_id, address, browser, auth_time, amr, acr)
    SELECT $1, $2, s.person_id, s.method, s.created_at, $3, $4, $5, $6, s.browser, s.auth_time,
        s.amr, s.acr
    FROM sessions s JOIN people p ON p.id = s.person_id
    WHERE s.id = $7 AND s.ended_at IS NULL AND p.disabled_at IS NULL FOR SHARE";

impl Store {
    /// The device code, and what people type; none when too many wait already.
    pub async fn add_device(
        &self,
        new: NewDevice<'_>,
        now: Timestamp,
    ) -> Result<Option<(Secret, UserCode)>, StoreError> {
        let (secret, code) = (Secret::generate(), UserCode::generate());
        let done = sqlx::query(
            "INSERT INTO devices (digest, code_digest, client_id, scope, resources, address,
                created_at, expires_at, poll_interval, decision)
             SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, 'pending'
             WHERE (SELECT count(*) FROM devices WHERE expires_at > $7) < $10
             ON CONFLICT DO NOTHING",
        )
        .bind(secret.digest())
        .bind(code.digest())
        .bind(new.client_id)
        .bind(new.scope)
        .bind(to_json(new.resources))
        .bind(new.address.to_string())
        .bind(now.as_second())
        .bind(now.as_second().saturating_add(device::LIFETIME))
        .bind(device::INTERVAL)
        .bind(WAITING_MAX)
        .execute(&self.pool)
        .await?;
        Ok((done.rows_affected() == 1).then_some((secret, code)))
    }

    /// The device that waits under this code, if nobody has decided on it.
    pub async fn waiting_device(
        &self,
        code: &UserCode,
        now: Timestamp,
    ) -> Result<Option<Device>, StoreError> {
        let row: Option<Row> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM devices
             WHERE code_digest = $1 AND expires_at > $2 AND decision = 'pending'"
        )))
        .bind(code.digest())
        .bind(now.as_second())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Device {
            client_id: row.client_id,
            scope: row.scope,
            resources: list(&row.resources)?,
            address: row.address,
            created_at: time(row.created_at)?,
        }))
    }

    /// Decides once. False when there is nothing to decide any more.
    pub async fn decide_device(
        &self,
        code: &UserCode,
        decision: Decision,
        session_id: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE devices SET decision = $1, session_id = $2
             WHERE code_digest = $3 AND expires_at > $4 AND decision = 'pending'",
        )
        .bind(decision.as_str())
        .bind(session_id)
        .bind(code.digest())
        .bind(now.as_second())
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// A device asks. An approval is told once.
    pub async fn ask_device(
        &self,
        device_code: &str,
        client_id: &str,
        now: Timestamp,
    ) -> Result<Asked, StoreError> {
        let digest = digest(device_code);
        let lock = self.dialect.pick("", " FOR UPDATE");
        let mut tx = self.write().await?;
        let row: Option<Row> = sqlx::query_as(sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM devices WHERE digest = $1{lock}"
        )))
        .bind(&digest)
        .fetch_optional(&mut *tx)
        .await?;
        let row = row.filter(|row| row.client_id == client_id && row.used_at.is_none());
        let Some(row) = row else { return Ok(Asked::Unknown) };
        let waiting = Waiting {
            decision: Decision::parse(&row.decision).ok_or(StoreError::Damaged("a decision"))?,
            expires_at: row.expires_at,
            asked_at: row.asked_at,
            interval: row.poll_interval,
        };
        let answer = waiting.answer(now);
        let interval = match answer {
            Answer::SlowDown(interval) => interval,
            _ => row.poll_interval,
        };
        let used = matches!(answer, Answer::Approved | Answer::Denied);
        sqlx::query(
            "UPDATE devices SET asked_at = $1, poll_interval = $2, used_at = $3 WHERE digest = $4",
        )
        .bind(now.as_second())
        .bind(interval)
        .bind(used.then_some(now.as_second()))
        .bind(&digest)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(match (answer, row.session_id) {
            (Answer::Approved, Some(session_id)) => {
                let resources = list(&row.resources)?;
                let (scope, address) = (row.scope, row.address);
                Asked::Approved(Approved { scope, resources, session_id, address })
            }
            (Answer::Approved, None) => Asked::Unknown,
            (answer, _) => Asked::Told(answer),
        })
    }
}

impl Store {
    /// A session of its own for an approved device, so that it outlives the browser's, with the
    /// first tokens' grant in it. The person proved who they are when they signed in to the browser.
    pub async fn begin_device_session(
        &self,
        approved: &Approved,
        client_id: &str,
        lifetimes: Lifetimes,
        now: Timestamp,
    ) -> Result<Redeemed, RedeemError> {
        let browser = self.session_by_id(&approved.session_id, lifetimes.idle, now).await?;
        browser.ok_or(RedeemError::SessionOver)?;
        let id = Uuid::new_v4().to_string();
        let expires_at = now.as_second().saturating_add(seconds(lifetimes.max));
        let mut tx = self.write().await?;
        // Whoever signs the browser out or disables the person at this moment does so before us, or
        // ends this session, too. Nobody has its cookie.
        let begun = sqlx::query(self.dialect.pick(BEGIN, BEGIN_LOCKED))
            .bind(&id)
            .bind(Secret::generate().digest())
            .bind(now.as_second())
            .bind(expires_at)
            .bind(client_id)
            .bind(&approved.address)
            .bind(&approved.session_id)
            .execute(&mut *tx)
            .await?;
        if begun.rows_affected() == 0 {
            return Err(RedeemError::SessionOver);
        }
        // Whoever unties the account at a provider ends what it let in, be it through a device.
        sqlx::query(
            "INSERT INTO upstream_sessions (session_id, provider, id_token)
             SELECT $1, provider, id_token FROM upstream_sessions WHERE session_id = $2",
        )
        .bind(&id)
        .bind(&approved.session_id)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        let verifier = Secret::generate();
        let unreadable = || RedeemError::Store(StoreError::Damaged("a verifier"));
        let verifier = pkce::Verifier::parse(verifier.as_str()).ok_or_else(unreadable)?;
        let code = NewCode {
            session_id: &id,
            client_id,
            scope: &approved.scope,
            redirect_uri: "",
            challenge: &verifier.challenge(),
            nonce: None,
        };
        let code = self.issue_code(code, now).await?;
        self.set_code_resources(&code, &approved.resources).await?;
        self.redeem_code(code.as_str(), client_id, "", &verifier, lifetimes.idle, now).await
    }
}

/// How long sessions last.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    pub idle: Duration,
    pub max: Duration,
}
