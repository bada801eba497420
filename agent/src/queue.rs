//! A channel's own buffer, bounded in bytes.
//!
//! russh refills a channel's window as soon as data arrives and hands the data to the channel's
//! queue; when that queue is full the whole connection waits. So each channel is emptied at once
//! into one of these. A gateway sends no more than it has credit for, which is less than fits in here;
//! one of an earlier version fills it up, and then its connection slows down. Nothing is dropped.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Most bytes that wait in one queue.
pub const LIMIT: usize = 4 << 20;

/// What a message costs beside its bytes, so that a flood of tiny ones is bounded too.
const OVERHEAD: usize = 128;

type Item = (Bytes, OwnedSemaphorePermit);

pub struct Sender {
    items: mpsc::UnboundedSender<Item>,
    room: Arc<Semaphore>,
    popped: Popped,
}

pub struct Receiver {
    items: mpsc::UnboundedReceiver<Item>,
    popped: Popped,
}

/// Bytes that were taken from a queue.
#[derive(Clone)]
pub struct Popped(Arc<Semaphore>);

impl Popped {
    /// Waits for so many more.
    pub async fn bytes(&self, bytes: u32) {
        match self.0.acquire_many(bytes).await {
            Ok(permits) => permits.forget(),
            Err(_) => std::future::pending().await,
        }
    }
}

/// The reader is gone: nobody will see the bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

pub fn queue() -> (Sender, Receiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(LIMIT));
    let popped = Popped(Arc::new(Semaphore::new(0)));
    let (items, other) = (sender, popped.clone());
    (Sender { items, room, popped: other }, Receiver { items: receiver, popped })
}

impl Sender {
    pub fn popped(&self) -> Popped {
        self.popped.clone()
    }

    /// Waits for room.
    pub async fn push(&self, bytes: Bytes) -> Result<(), Closed> {
        let cost = (bytes.len() + OVERHEAD).min(LIMIT) as u32;
        let permit = tokio::select! {
            permit = self.room.clone().acquire_many_owned(cost) => permit.map_err(|_| Closed)?,
            () = self.items.closed() => return Err(Closed),
        };
        self.items.send((bytes, permit)).map_err(|_| Closed)
    }
}

impl Receiver {
    pub async fn pop(&mut self) -> Option<Bytes> {
        let (bytes, _room) = self.items.recv().await?;
        self.popped.0.add_permits(bytes.len());
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_full_queue_waits_and_loses_nothing() {
        let (sender, mut receiver) = queue();
        let chunk = Bytes::from(vec![7; LIMIT / 4]);
        for _ in 0..3 {
            sender.push(chunk.clone()).await.unwrap();
        }
        assert!(sender.push(chunk.clone()).now_or_never().is_none(), "no room for the overhead");
        assert_eq!(receiver.pop().await, Some(chunk.clone()));
        sender.push(chunk.clone()).await.unwrap();
        drop(sender);
        let mut left = 0;
        while receiver.pop().await.is_some() {
            left += 1;
        }
        assert_eq!(left, 3);
    }

    #[tokio::test]
    async fn a_waiting_writer_learns_that_the_reader_is_gone() {
        let (sender, receiver) = queue();
        sender.push(Bytes::from(vec![0; LIMIT])).await.unwrap();
        let waiting = sender.push(Bytes::from_static(b"x"));
        drop(receiver);
        assert_eq!(waiting.await, Err(Closed));
    }

    #[tokio::test]
    async fn tiny_messages_are_bounded_too() {
        let (sender, _receiver) = queue();
        let mut taken = 0;
        while tokio::task::unconstrained(sender.push(Bytes::from_static(b"x")))
            .now_or_never()
            .is_some()
        {
            taken += 1;
        }
        assert_eq!(taken, LIMIT / (OVERHEAD + 1));
    }

    #[tokio::test]
    async fn what_is_taken_is_counted() {
        let (sender, mut receiver) = queue();
        let popped = sender.popped();
        for size in [100, 200] {
            sender.push(Bytes::from(vec![0; size])).await.unwrap();
        }
        assert!(popped.bytes(100).now_or_never().is_none(), "none is taken");
        receiver.pop().await.unwrap();
        popped.bytes(100).await;
        assert!(popped.bytes(1).now_or_never().is_none());
        receiver.pop().await.unwrap();
        popped.bytes(200).await;
    }
}
