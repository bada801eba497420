//! The keys that sign tokens.
//!
//! One is published as soon as it is there, signs from a time that is written beside it,
//! and goes when all that it signed has expired.

use std::time::Duration;

use domain::token::KEYS_MAX;
use jiff::Timestamp;
use serde::Serialize;
use sqlx::{Any, FromRow, Transaction};

use super::{Store, StoreError, sealed::key_label, seconds, time};
use crate::{
    master_key::{Under, is_sealed},
    signing::{KeyRing, KeyState, SigningError, SigningKey},
};

/// Beyond the last expiry, for clocks that differ and for whoever looks back.
const KEEP: i64 = 24 * 3600;

/// From so many keys on it is time to do something.
const KEYS_WARN: usize = KEYS_MAX / 4 * 3;

/// How signing keys come and go.
#[derive(Debug, Clone, Copy)]
pub struct KeyPlan {
    /// How long one signs.
    pub lifetime: Duration,
    /// How long it is published before it signs, so that everybody has it by then.
    pub notice: Duration,
    /// The longest life of a token that is not written down by itself.
    pub longest_token: Duration,
}

impl KeyPlan {
    /// When a key that signs from then on has signed for its time, in seconds since the epoch.
    fn end(&self, active_from: i64) -> i64 {
        active_from.saturating_add(seconds(self.lifetime))
    }

    /// Whether the successor of the newest key is to be published.
    fn is_due(&self, newest: i64, now: i64) -> bool {
        self.end(newest).saturating_sub(seconds(self.notice)) <= now
    }

    /// Whether all has expired that lives for up to `longest` and was signed before the successor did.
    fn is_over(longest: Duration, successor: i64, now: i64) -> bool {
        successor.saturating_add(seconds(longest)).saturating_add(KEEP) < now
    }

    /// Most keys that are published at a time while tokens live for up to `longest`: of each key from its
    /// notice to the end of the last token. One more for a rotation by hand.
    pub fn keys_needed(&self, longest: Duration) -> usize {
        let lifetime = seconds(self.lifetime).max(1);
        let published = seconds(self.notice)
            .saturating_add(lifetime)
            .saturating_add(seconds(longest))
            .saturating_add(KEEP);
        usize::try_from(published / lifetime + 2).unwrap_or(usize::MAX).saturating_add(1)
    }

    /// Whether verifiers can take all keys that tokens of this life need.
    ///
    /// # Errors
    /// Says which settings do not go together.
    pub fn check(&self, longest: Duration) -> anyhow::Result<()> {
        let needed = self.keys_needed(longest);
        let days = longest.as_secs() / 86_400;
        anyhow::ensure!(
            needed <= KEYS_MAX,
            "signing_key_lifetime is too short for tokens that live for {days} days: {needed} keys would \
             be needed at a time, and gateways take {KEYS_MAX}; make it longer, or personal_token_max shorter"
        );
        Ok(())
    }

    /// Says so when it will be close. `longer`: keys of tokens that operators have made to live longer;
    /// no reason not to start, for each of them holds one key at most, and many the same.
    pub fn warn(&self, longest: Duration, longer: usize) {
        let needed = self.keys_needed(longest).saturating_add(longer);
        if needed > KEYS_WARN {
            tracing::warn!(
                needed,
                of_longer_tokens = longer,
                most = KEYS_MAX,
                "tokens may come to need nearly as many signing keys as gateways take; make \
                 signing_key_lifetime longer, or fewer tokens that outlive personal_token_max"
            );
        }
    }
}

/// A signing key as it is listed.
#[derive(Debug, Clone, Serialize)]
pub struct KeyEntry {
    pub kid: String,
    /// `next`, `active` or `retired`.
    pub state: &'static str,
    pub published_at: Timestamp,
    pub active_from: Timestamp,
    /// Whether it is sealed with a master key.
    pub sealed: bool,
    /// With which one.
    pub under: Under,
}

#[derive(FromRow)]
struct Row {
    kid: String,
    private_key: Vec<u8>,
    created_at: i64,
    active_from: i64,
}

impl Store {
    async fn key_rows(&self) -> Result<Vec<Row>, StoreError> {
        Ok(sqlx::query_as(
            "SELECT kid, private_key, created_at, active_from FROM token_keys
             ORDER BY active_from, created_at, kid",
        )
        .fetch_all(&self.pool)
        .await?)
    }

    pub(crate) async fn key_version(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar("SELECT version FROM feeds WHERE name = 'token-keys'")
            .fetch_one(&self.pool)
            .await?)
    }

    /// All keys that are published. Makes the first one; of several servers that start at once, one
    /// wins.
    pub(crate) async fn key_ring(&self, now: Timestamp) -> Result<KeyRing, StoreError> {
        let mut rows = self.key_rows().await?;
        if rows.is_empty() {
            let (kid, private_key) = self.new_key().await?;
            self.add_key(&kid, &private_key, now, now, |newest| newest.is_none()).await?;
            rows = self.key_rows().await?;
        }
        let mut keys = Vec::with_capacity(rows.len());
        for Row { kid, private_key, active_from, .. } in rows {
            let private_key = self.unseal(&key_label(&kid), &private_key)?;
            let key = SigningKey::from_pkcs8(active_from, &private_key)
                .filter(|key| key.kid == kid)
                .ok_or(SigningError::Damaged(kid))?;
            keys.push(key);
        }
        Ok(KeyRing::new(keys)?)
    }

    /// The key set that is published (RFC 7517, section 5).
    pub async fn key_set(&self, now: Timestamp) -> Result<String, StoreError> {
        Ok(self.key_ring(now).await?.jwks().to_owned())
    }

    pub async fn list_keys(&self, now: Timestamp) -> Result<Vec<KeyEntry>, StoreError> {
        let rows = self.key_rows().await?;
        let times: Vec<i64> = rows.iter().map(|row| row.active_from).collect();
        let entry = |(index, row): (usize, Row)| {
            Ok(KeyEntry {
                state: KeyState::of(&times, index, now.as_second()).as_str(),
                under: self.master_keys.under(&key_label(&row.kid), &row.private_key),
                kid: row.kid,
                published_at: time(row.created_at)?,
                active_from: time(row.active_from)?,
                sealed: is_sealed(&row.private_key),
            })
        };
        rows.into_iter().enumerate().map(entry).collect()
    }

    /// Publishes a new key when the newest will have signed for its time, and removes keys that
    /// nothing needs any more. Any number of replicas may do this at once.
    pub async fn tend_keys(&self, plan: KeyPlan, now: Timestamp) -> Result<(), StoreError> {
        let second = now.as_second();
        let rows = self.key_rows().await?;
        let due = |newest: Option<i64>| newest.is_some_and(|newest| plan.is_due(newest, second));
        let newest = rows.iter().map(|row| row.active_from).max();
        if let Some(newest) = newest.filter(|newest| due(Some(*newest))) {
            let (kid, private_key) = self.new_key().await?;
            let from = plan.end(newest).max(second.saturating_add(seconds(plan.notice)));
            self.add_key(&kid, &private_key, now, time(from)?, due).await?;
        }
        for pair in rows.windows(2) {
            let [old, next] = pair else { continue };
            let over = KeyPlan::is_over(plan.longest_token, next.active_from, second);
            if over && !self.key_is_needed(old, next, second).await? {
                self.remove_key(&old.kid).await?;
            }
        }
        Ok(())
    }

    /// Whether a personal token lives that was signed between those two times.
    async fn key_is_needed(&self, old: &Row, next: &Row, now: i64) -> Result<bool, StoreError> {
        let live: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM personal_tokens
             WHERE created_at >= $1 AND created_at <= $2 AND expires_at > $3
               AND revoked_at IS NULL",
        )
        .bind(old.active_from - 300)
        .bind(next.active_from + 300)
        .bind(now - KEEP)
        .fetch_one(&self.pool)
        .await?;
        Ok(live > 0)
    }

    /// Publishes a new key that signs after the notice. Refused while one waits to sign.
    pub async fn rotate_key(&self, notice: Duration, now: Timestamp) -> Result<String, StoreError> {
        let second = now.as_second();
        let from = time(second.saturating_add(seconds(notice)))?;
        let mut connection = self.pool.acquire().await?;
        self.check_master_key(&mut connection).await?;
        drop(connection);
        let (kid, private_key) = self.new_key().await?;
        let none_waits = |newest: Option<i64>| newest.is_none_or(|newest| newest <= second);
        if self.add_key(&kid, &private_key, now, from, none_waits).await? {
            Ok(kid)
        } else {
            Err(StoreError::Invalid(
                "a next key is published already and will sign by itself; see `auth key list`",
            ))
        }
    }

    /// A new key, sealed if there is a master key.
    pub(super) async fn new_key(&self) -> Result<(String, Vec<u8>), StoreError> {
        let made = tokio::task::spawn_blocking(SigningKey::generate).await;
        let (kid, der) = made.map_err(|_| SigningError::Generate)??;
        let private_key = self.seal(&key_label(&kid), &der)?;
        Ok((kid, private_key))
    }

    /// Adds the key if `wanted` says so of the time of the newest one, which nobody can change
    /// meanwhile.
    async fn add_key(
        &self,
        kid: &str,
        private_key: &[u8],
        now: Timestamp,
        from: Timestamp,
        wanted: impl FnOnce(Option<i64>) -> bool,
    ) -> Result<bool, StoreError> {
        let mut tx = self.change_keys().await?;
        let newest: Option<i64> = sqlx::query_scalar(
            "SELECT active_from FROM token_keys ORDER BY active_from DESC LIMIT 1",
        )
        .fetch_optional(&mut *tx)
        .await?;
        if !wanted(newest) {
            return Ok(false);
        }
        Self::insert_key(&mut tx, kid, private_key, now, from).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// A transaction in which nobody else changes keys, and of which running servers learn.
    pub(super) async fn change_keys(&self) -> Result<Transaction<'static, Any>, StoreError> {
        let mut tx = self.write().await?;
        // First, for it is also the lock.
        sqlx::query("UPDATE feeds SET version = version + 1 WHERE name = 'token-keys'")
            .execute(&mut *tx)
            .await?;
        Ok(tx)
    }

    pub(super) async fn insert_key(
        tx: &mut Transaction<'static, Any>,
        kid: &str,
        private_key: &[u8],
        now: Timestamp,
        from: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO token_keys (kid, private_key, created_at, active_from)
             VALUES ($1, $2, $3, $4)",
        )
        .bind(kid)
        .bind(private_key)
        .bind(now.as_second())
        .bind(from.as_second())
        .execute(&mut **tx)
        .await?;
        Ok(())
    }

    async fn remove_key(&self, kid: &str) -> Result<(), StoreError> {
        let mut tx = self.change_keys().await?;
        sqlx::query("DELETE FROM token_keys WHERE kid = $1").bind(kid).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Keys that only tokens hold which live longer than `longest`, as operators make them: at most one
    /// for each.
    pub(crate) async fn keys_of_longer_tokens(
        &self,
        longest: Duration,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        let tokens: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM personal_tokens
             WHERE revoked_at IS NULL AND expires_at > $1 AND expires_at - created_at > $2",
        )
        .bind(now.as_second())
        .bind(seconds(longest))
        .fetch_one(&self.pool)
        .await?;
        Ok(usize::try_from(tokens).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 86_400;

    fn plan(lifetime: u64, notice: u64) -> KeyPlan {
        KeyPlan {
            lifetime: Duration::from_secs(lifetime),
            notice: Duration::from_secs(notice),
            longest_token: Duration::from_secs(600),
        }
    }

    #[test]
    fn weekly_keys_carry_tokens_of_a_year() {
        let year = Duration::from_secs(366 * DAY);
        assert!(plan(7 * DAY, 3600).check(year).is_ok());
        let error = plan(3600, 600).check(year).unwrap_err().to_string();
        assert!(
            error.contains("signing_key_lifetime") && error.contains("personal_token_max"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn tokens_that_operators_make_to_live_longer_are_in_the_sum() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("auth.db").into()).await.unwrap();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let alice =
            crate::NewPerson { name: "alice".parse().unwrap(), email: None, groups: vec![] };
        store.ensure_user(&alice, None, now).await.unwrap();
        let issuer = "https://auth.example.org".parse().unwrap();
        let longest = Duration::from_secs(366 * DAY);
        let mut withdrawn = String::new();
        for days in [30, 366, 367, 3653, 3653] {
            let lifetime = Duration::from_secs(days * DAY);
            let new = crate::NewPersonalToken::full("x", lifetime, "dormouse");
            let made = store.issue_personal_token(&issuer, &alice.name, new, now).await.unwrap();
            withdrawn = made.1.id;
        }
        assert_eq!(store.keys_of_longer_tokens(longest, now).await.unwrap(), 3);
        let subject = store.person(&alice.name).await.unwrap().unwrap().subject;
        store.revoke_personal_token(&subject, &withdrawn, now).await.unwrap();
        assert_eq!(store.keys_of_longer_tokens(longest, now).await.unwrap(), 2);
    }

    proptest! {
        /// Two years of rotation: as long as a token lives its key is published, and all that are published fit
        /// into the set that verifiers take.
        #[test]
        fn no_key_that_is_needed_is_cut(
            lifetime in DAY / 2..400 * DAY, notice in 60u64..3600, token in 60..366 * DAY, tick in 1i64..3600,
        ) {
            let (plan, longest) = (plan(lifetime, notice), Duration::from_secs(token));
            prop_assume!(plan.check(longest).is_ok());
            let (mut keys, mut now) = (std::collections::VecDeque::from([0i64]), 0);
            // Each key that has signed, and when the last token of it ends.
            let mut signed: Vec<(i64, i64)> = Vec::new();
            while now < 2 * 366 * DAY as i64 {
                if let Some(newest) = keys.back().copied().filter(|newest| plan.is_due(*newest, now)) {
                    keys.push_back(plan.end(newest).max(now + seconds(plan.notice)));
                }
                while keys.get(1).is_some_and(|next| KeyPlan::is_over(longest, *next, now)) {
                    keys.pop_front();
                }
                let active = keys.iter().rev().find(|from| **from <= now).copied().unwrap_or(keys[0]);
                let end = now + seconds(longest);
                match signed.last_mut().filter(|(key, _)| *key == active) {
                    Some((_, last)) => *last = end,
                    None => signed.push((active, end)),
                }
                let oldest = signed.iter().find(|(_, end)| *end >= now).map_or(active, |(key, _)| *key);
                prop_assert!(keys[0] <= oldest, "a key is gone whose tokens live");
                prop_assert!(keys.len() <= plan.keys_needed(longest) && keys.len() <= KEYS_MAX);
                now += seconds(plan.lifetime) / 3 + tick;
            }
        }
    }
}
