//! The queue of refresh tokens that wait to be exchanged.
//!
//! SQLite has one writer at a time, and making a transaction durable costs more than what is in it.
//! So what has come in while a transaction was written goes into the next one together. PostgreSQL
//! joins the transactions of its connections by itself.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::{Dialect, Exchange, RedeemError, Redeemed, Store, StoreError};

/// Exchanges in one transaction: enough to share its cost, and few enough that the tokens of one
/// batch are signed while the next is written.
const BATCH: usize = 32;

/// Exchanges that may wait for a place in the queue's end.
const QUEUE: usize = 1024;

pub(crate) struct Waiting {
    exchange: Exchange,
    answer: oneshot::Sender<Result<Redeemed, RedeemError>>,
}

/// Exchanges refresh tokens; each is answered when what it wrote is durable.
pub(crate) enum Refreshes {
    OneByOne(Store),
    Together(mpsc::Sender<Waiting>),
}

impl Refreshes {
    /// For SQLite with a task that ends with this value.
    pub fn start(store: Store) -> Self {
        match store.dialect {
            Dialect::Postgres => Self::OneByOne(store),
            Dialect::Sqlite => {
                let (queue, waiting) = mpsc::channel(QUEUE);
                tokio::spawn(write(store, waiting));
                Self::Together(queue)
            }
        }
    }

    pub async fn redeem(&self, exchange: Exchange) -> Result<Redeemed, RedeemError> {
        match self {
            Self::OneByOne(store) => {
                let done = store.exchange(std::slice::from_ref(&exchange)).await?;
                done.into_iter().next().unwrap_or(Err(RedeemError::Unknown))
            }
            Self::Together(queue) => {
                let (answer, answered) = oneshot::channel();
                let ended = || RedeemError::Store(StoreError::Database(sqlx::Error::WorkerCrashed));
                queue.send(Waiting { exchange, answer }).await.map_err(|_| ended())?;
                answered.await.map_err(|_| ended())?
            }
        }
    }
}

async fn write(store: Store, mut waiting: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(BATCH);
    while let Some(first) = waiting.recv().await {
        batch.push(first);
        // Requests that are being read at this moment come along, as long as more are: a turn that
        // brings none costs next to nothing, and a transaction a great deal.
        loop {
            let before = batch.len();
            tokio::task::yield_now().await;
            while batch.len() < BATCH
                && let Ok(next) = waiting.try_recv()
            {
                batch.push(next);
            }
            if batch.len() == before || batch.len() == BATCH {
                break;
            }
        }
        let (exchanges, answers): (Vec<_>, Vec<_>) =
            batch.drain(..).map(|Waiting { exchange, answer }| (exchange, answer)).unzip();
        let done = match store.exchange(&exchanges).await {
            Ok(done) => done,
            Err(error) => {
                let error = Arc::new(error);
                let failed = |_| Err(StoreError::Together(error.clone()).into());
                exchanges.iter().map(failed).collect()
            }
        };
        for (answer, done) in answers.into_iter().zip(done) {
            // Whoever has gone meanwhile presents the same token again.
            let _ = answer.send(done);
        }
    }
}
