//! A channel's own buffer, bounded in bytes.
//!
//! russh refills a channel's window as soon as data arrives and hands the data to the channel's
//! queue; when that queue is full the whole connection waits. So each channel is emptied at once
//! into one of these, and only when this is full as well does the connection slow down. Nothing is
//! dropped, and no channel is closed for being slow.

use std::sync::Arc;

use russh::ChannelMsg;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Most bytes that wait in one direction of one channel.
pub const LIMIT: usize = 4 << 20;

/// What a message costs beside its bytes, so that a flood of tiny ones is bounded too.
const OVERHEAD: usize = 128;

type Item = (ChannelMsg, OwnedSemaphorePermit);

pub struct Sender {
    items: mpsc::UnboundedSender<Item>,
    room: Arc<Semaphore>,
}

pub struct Receiver {
    items: mpsc::UnboundedReceiver<Item>,
}

/// The other side is gone: nobody will see the message.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

pub fn queue() -> (Sender, Receiver) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(LIMIT));
    (Sender { items: sender, room }, Receiver { items: receiver })
}

impl Sender {
    /// Waits for room.
    pub async fn push(&self, message: ChannelMsg) -> Result<(), Closed> {
        let length = match &message {
            ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => data.len(),
            _ => 0,
        };
        let cost = (length + OVERHEAD).min(LIMIT) as u32;
        let permit = tokio::select! {
            permit = self.room.clone().acquire_many_owned(cost) => permit.map_err(|_| Closed)?,
            () = self.items.closed() => return Err(Closed),
        };
        self.items.send((message, permit)).map_err(|_| Closed)
    }
}

impl Receiver {
    pub async fn pop(&mut self) -> Option<ChannelMsg> {
        self.items.recv().await.map(|(message, _)| message)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::task::unconstrained;

    use super::*;

    fn data(length: usize) -> ChannelMsg {
        ChannelMsg::Data { data: vec![7; length].into() }
    }

    #[tokio::test]
    async fn a_full_queue_waits_keeps_the_order_and_loses_nothing() {
        let (sender, mut receiver) = queue();
        for _ in 0..3 {
            sender.push(data(LIMIT / 4)).await.unwrap();
        }
        let blocked = unconstrained(sender.push(data(LIMIT / 4))).now_or_never();
        assert!(blocked.is_none(), "no room for the overhead");
        sender.push(ChannelMsg::Eof).await.unwrap();
        drop(sender);
        for _ in 0..3 {
            assert!(matches!(receiver.pop().await, Some(ChannelMsg::Data { .. })));
        }
        assert!(matches!(receiver.pop().await, Some(ChannelMsg::Eof)));
        assert!(receiver.pop().await.is_none());
    }

    #[tokio::test]
    async fn a_waiting_writer_learns_that_the_reader_is_gone() {
        let (sender, receiver) = queue();
        sender.push(data(LIMIT)).await.unwrap();
        let waiting = sender.push(data(1));
        drop(receiver);
        assert_eq!(waiting.await, Err(Closed));
    }
}
