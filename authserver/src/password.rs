//! Passwords: argon2id (RFC 9106), on blocking threads, a few at a time.

use std::{
    sync::{Arc, OnceLock},
    thread::available_parallelism,
    time::Duration,
};

use argon2::{
    Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version,
    password_hash::phc::PasswordHash,
};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};
use zeroize::Zeroizing;

/// Longest password, in bytes: what is hashed before anybody is known must be bounded.
pub const PASSWORD_MAX: usize = 1024;

/// How long a sign-in waits for its turn.
const TURN: Duration = Duration::from_secs(10);

/// How many wait for a turn at once: what is done in that time, and no more.
const WAITING_MAX: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    #[error("a password must have between 1 and {PASSWORD_MAX} bytes")]
    Length,
    #[error("the password could not be hashed")]
    Hash,
    #[error("too many sign-ins at once")]
    Busy,
}

/// Hashes and checks passwords. Each takes 19 MiB and some 20 ms of a core, so at most one per core
/// runs and the others wait their turn. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Passwords {
    turns: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

impl Default for Passwords {
    fn default() -> Self {
        Self::with_turns(available_parallelism().map_or(1, Into::into))
    }
}

impl Passwords {
    fn with_turns(turns: usize) -> Self {
        let places = Arc::new(Semaphore::new(turns + WAITING_MAX));
        Self { turns: Arc::new(Semaphore::new(turns)), places }
    }

    /// The PHC string that is stored.
    pub async fn hash(&self, password: &str) -> Result<String, PasswordError> {
        if password.is_empty() || password.len() > PASSWORD_MAX {
            return Err(PasswordError::Length);
        }
        let password = Zeroizing::new(password.to_owned());
        self.in_turn(move || {
            argon2()?
                .hash_password(password.as_bytes())
                .map(|hash| hash.to_string())
                .map_err(|_| PasswordError::Hash)
        })
        .await?
    }

    /// True if the password is the one of `stored`. Without a stored hash the same work is done for
    /// nothing, so that time does not tell who exists.
    pub async fn check(
        &self,
        password: &str,
        stored: Option<String>,
    ) -> Result<bool, PasswordError> {
        let cut = password.len().min(PASSWORD_MAX);
        let fits = cut == password.len();
        let password = Zeroizing::new(password.as_bytes()[..cut].to_vec());
        self.in_turn(move || {
            let (text, real) = match &stored {
                Some(text) => (text.as_str(), true),
                None => (decoy()?, false),
            };
            let hash = PasswordHash::new(text).map_err(|_| PasswordError::Hash)?;
            let matches = argon2()?.verify_password(&password, &hash).is_ok();
            Ok(matches && real && fits)
        })
        .await?
    }

    async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PasswordError> {
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| PasswordError::Busy)?;
        let turn = timeout(TURN, self.turns.clone().acquire_owned());
        let turn = turn.await.ok().and_then(Result::ok).ok_or(PasswordError::Busy)?;
        spawn_blocking(move || {
            // Held by the thread: a caller that goes away must not let more than its turn run.
            let _held = (turn, place);
            work()
        })
        .await
        .map_err(|_| PasswordError::Hash)
    }
}

/// 19 MiB, two passes, one lane: the floor that OWASP's password storage cheat sheet gives.
fn argon2() -> Result<Argon2<'static>, PasswordError> {
    let params = Params::new(19 * 1024, 2, 1, None).map_err(|_| PasswordError::Hash)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// A hash that nobody's password matches, of the same cost as the real ones.
fn decoy() -> Result<&'static str, PasswordError> {
    static DECOY: OnceLock<Result<String, PasswordError>> = OnceLock::new();
    DECOY
        .get_or_init(|| {
            argon2()?
                .hash_password(&crate::secret::random())
                .map(|hash| hash.to_string())
                .map_err(|_| PasswordError::Hash)
        })
        .as_deref()
        .map_err(|error| *error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_password_itself_matches() {
        let passwords = Passwords::default();
        let hash = passwords.hash("correct horse").await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert_eq!(passwords.check("correct horse", Some(hash.clone())).await, Ok(true));
        for wrong in ["", "correct hors", "Correct horse", "correct horse "] {
            assert_eq!(passwords.check(wrong, Some(hash.clone())).await, Ok(false), "{wrong}");
        }
        assert_eq!(passwords.check("correct horse", None).await, Ok(false));
        assert_eq!(
            passwords.check("x", Some("garbage".to_owned())).await,
            Err(PasswordError::Hash)
        );
    }

    #[tokio::test]
    async fn lengths_are_bounded_and_nothing_is_cut_off_silently() {
        let passwords = Passwords::default();
        let longest = "a".repeat(PASSWORD_MAX);
        let hash = passwords.hash(&longest).await.unwrap();
        assert_eq!(passwords.check(&longest, Some(hash.clone())).await, Ok(true));
        assert_eq!(passwords.check(&format!("{longest}b"), Some(hash)).await, Ok(false));
        assert_eq!(passwords.hash(&format!("{longest}b")).await, Err(PasswordError::Length));
        assert_eq!(passwords.hash("").await, Err(PasswordError::Length));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_for_a_turn_is_told_so() {
        let passwords = Passwords::with_turns(0);
        assert_eq!(passwords.check("x", None).await, Err(PasswordError::Busy));
    }

    #[tokio::test(start_paused = true)]
    async fn attack_24_a_crowd_is_turned_away_at_once() {
        let passwords = Passwords::with_turns(0);
        let begun = tokio::time::Instant::now();
        let tries = (0..WAITING_MAX + 50).map(|_| {
            let passwords = passwords.clone();
            tokio::spawn(async move {
                let _ = passwords.check("x", None).await;
                begun.elapsed()
            })
        });
        let mut at_once = 0;
        for task in tries.collect::<Vec<_>>() {
            at_once += usize::from(task.await.unwrap().is_zero());
        }
        assert_eq!(at_once, 50);
    }
}
