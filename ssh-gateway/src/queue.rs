//! A channel's own buffer, bounded in bytes.
//!
//! russh hands data to the channel's queue, and when that is full the whole connection waits. So each
//! channel is emptied at once into one of these. What a client may still send on a channel whose
//! reader stalls is bounded by its window ([`crate::windows`]), and by budgets; only past those does
//! the connection slow down. Nothing is dropped, and no channel is closed for being slow.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use russh::ChannelMsg;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::budget::{Budget, Taken};

/// Most bytes that wait for the client in one channel. What comes from the client is bounded by
/// windows instead.
pub const LIMIT: usize = 4 << 20;

/// The same for a terminal: what a person interrupts should be near its end.
pub const TERMINAL_LIMIT: usize = 256 << 10;

/// What a message costs beside its bytes, so that a flood of tiny ones is bounded too.
const OVERHEAD: usize = 128;

/// Up to here data is joined to what waits before it, as long as that is short as well.
const TINY: usize = 64;
const JOINED: usize = 4096;

struct Item {
    message: ChannelMsg,
    cost: usize,
    taken: Option<Taken>,
    _room: Option<OwnedSemaphorePermit>,
}

#[derive(Default)]
struct Shared {
    items: Mutex<VecDeque<Item>>,
    changed: Notify,
    /// Nothing waits any more.
    drained: Notify,
    /// Bytes that wait.
    backlog: Backlog,
    sender_gone: CancellationToken,
    receiver_gone: CancellationToken,
}

impl Shared {
    fn items(&self) -> std::sync::MutexGuard<'_, VecDeque<Item>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many bytes may wait in a queue without taking from its budget.
#[derive(Clone, Default)]
pub struct Reserved(Arc<AtomicUsize>);

impl Reserved {
    pub fn set(&self, bytes: usize) {
        self.0.store(bytes, Ordering::Release);
    }
}

/// How many bytes wait in a queue.
#[derive(Clone, Default)]
pub struct Backlog(Arc<AtomicUsize>);

impl Backlog {
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    pub fn is_gone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

pub struct Sender {
    shared: Arc<Shared>,
    budget: Budget,
    reserved: Reserved,
    room: Option<Arc<Semaphore>>,
}

pub struct Receiver {
    shared: Arc<Shared>,
}

/// The other side is gone: nobody will see the message.
#[derive(Debug, PartialEq, Eq)]
pub struct Closed;

/// With a limit of its own, if any. What is reserved is in the budget already.
pub fn queue(budget: Budget, limit: Option<usize>, reserved: Reserved) -> (Sender, Receiver) {
    let shared = Arc::new(Shared::default());
    let room = limit.map(|limit| Arc::new(Semaphore::new(limit)));
    (Sender { shared: shared.clone(), budget, reserved, room }, Receiver { shared })
}

impl Sender {
    pub fn backlog(&self) -> Backlog {
        self.shared.backlog.clone()
    }

    /// Waits for room.
    pub async fn push(&self, message: ChannelMsg) -> Result<(), Closed> {
        let length = match &message {
            ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => data.len(),
            _ => 0,
        };
        let joins = matches!(message, ChannelMsg::Data { .. }) && length <= TINY && {
            let items = self.shared.items();
            let last = items.back().map(|item| &item.message);
            matches!(last, Some(ChannelMsg::Data { data }) if data.len() < JOINED)
        };
        let cost = if joins { length } else { length + OVERHEAD };
        let admitted = async {
            let room = match &self.room {
                Some(room) => {
                    // A limit is far above any message.
                    let cost = cost.min(TERMINAL_LIMIT) as u32;
                    room.clone().acquire_many_owned(cost).await.ok()
                }
                None => None,
            };
            (room, self.take(cost).await)
        };
        let (room, taken) = tokio::select! {
            biased;
            () = self.shared.receiver_gone.cancelled() => return Err(Closed),
            admitted = admitted => admitted,
        };
        self.shared.backlog.0.fetch_add(cost, Ordering::AcqRel);
        let item = Item { message, cost, taken, _room: room };
        put(&mut self.shared.items(), item);
        self.shared.changed.notify_one();
        Ok(())
    }
}

impl Sender {
    /// Room within the budgets. A channel whose queue is empty, or becomes so meanwhile, waits for nobody
    /// else's reader.
    async fn take(&self, cost: usize) -> Option<Taken> {
        let reserved = self.reserved.0.load(Ordering::Acquire);
        if self.shared.backlog.bytes() + cost <= reserved {
            return None;
        }
        while self.shared.backlog.bytes() > 0 {
            tokio::select! {
                biased;
                taken = self.budget.take(cost, false) => return Some(taken),
                () = self.shared.drained.notified() => {}
            }
        }
        Some(self.budget.take(cost, true).await)
    }
}

/// Joins tiny data to what waits already: a client whose window is withheld sends byte by byte.
fn put(items: &mut VecDeque<Item>, item: Item) {
    if let ChannelMsg::Data { data: tiny } = &item.message
        && tiny.len() <= TINY
        && let Some(Item { message: ChannelMsg::Data { data }, cost, taken, _room }) =
            items.back_mut()
        && data.len() < JOINED
    {
        let mut joined = BytesMut::from(std::mem::replace(data, Bytes::new()));
        joined.extend_from_slice(tiny);
        *data = joined.freeze();
        *cost += item.cost;
        match (taken.as_mut(), item.taken) {
            (Some(mine), Some(theirs)) => mine.merge(theirs),
            (None, theirs) => *taken = theirs,
            (Some(_), None) => {}
        }
        match (_room.as_mut(), item._room) {
            (Some(mine), Some(theirs)) => mine.merge(theirs),
            (None, theirs) => *_room = theirs,
            (Some(_), None) => {}
        }
        return;
    }
    items.push_back(item);
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.sender_gone.cancel();
        self.shared.changed.notify_one();
    }
}

impl Receiver {
    /// `None` at the end.
    pub async fn pop(&mut self) -> Option<ChannelMsg> {
        loop {
            let over = self.shared.sender_gone.is_cancelled();
            if let Some(item) = self.shared.items().pop_front() {
                let before = self.shared.backlog.0.fetch_sub(item.cost, Ordering::AcqRel);
                if before == item.cost {
                    self.shared.drained.notify_one();
                }
                return Some(item.message);
            }
            if over {
                return None;
            }
            self.shared.changed.notified().await;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.receiver_gone.cancel();
        self.shared.items().clear();
        self.shared.backlog.0.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::task::unconstrained;

    use super::*;
    use crate::budget::tests::budget;

    fn data(length: usize) -> ChannelMsg {
        ChannelMsg::Data { data: vec![7; length].into() }
    }

    fn limited() -> (Sender, Receiver) {
        let [_, down] = budget(1 << 30, 1 << 30, 1 << 30).connection("alice");
        queue(down, Some(LIMIT), Reserved::default())
    }

    #[tokio::test]
    async fn a_full_queue_waits_keeps_the_order_and_loses_nothing() {
        let (sender, mut receiver) = limited();
        let size = TERMINAL_LIMIT / 2;
        let fits = LIMIT / (size + OVERHEAD);
        for _ in 0..fits {
            sender.push(data(size)).await.unwrap();
        }
        assert!(unconstrained(sender.push(data(size))).now_or_never().is_none(), "no room");
        sender.push(ChannelMsg::Eof).await.unwrap();
        drop(sender);
        for _ in 0..fits {
            assert!(matches!(receiver.pop().await, Some(ChannelMsg::Data { .. })));
        }
        assert!(matches!(receiver.pop().await, Some(ChannelMsg::Eof)));
        assert!(receiver.pop().await.is_none());
    }

    #[tokio::test]
    async fn a_waiting_writer_learns_that_the_reader_is_gone() {
        let [up, _] = budget(64 << 10, 1 << 20, 1 << 20).connection("alice");
        let (sender, receiver) = queue(up, None, Reserved::default());
        sender.push(data(32 << 10)).await.unwrap();
        let waiting = sender.push(data(1 << 10));
        drop(receiver);
        assert_eq!(waiting.await, Err(Closed));
    }

    #[tokio::test]
    async fn who_reads_goes_on_while_others_use_up_the_budget() {
        let budgets = budget(64 << 10, 64 << 10, 64 << 10);
        let [_, others] = budgets.connection("alice");
        let _unread = others.take(32 << 10, true).await;
        let [_, down] = budgets.connection("alice");
        let (sender, mut receiver) = queue(down, None, Reserved::default());
        sender.push(data(1 << 10)).await.unwrap();
        let mut second = std::pin::pin!(sender.push(data(1 << 10)));
        assert!(second.as_mut().now_or_never().is_none(), "one message at a time");
        assert!(receiver.pop().await.is_some());
        assert_eq!(second.now_or_never(), Some(Ok(())), "its own queue is empty again");
    }

    #[tokio::test]
    async fn tiny_data_is_joined_and_costs_what_it_is() {
        let [up, _] = budget(1 << 20, 1 << 20, 1 << 20).connection("alice");
        let (sender, mut receiver) = queue(up, None, Reserved::default());
        for _ in 0..1000 {
            sender.push(data(2)).await.unwrap();
        }
        assert_eq!(sender.backlog().bytes(), OVERHEAD + 2000);
        match receiver.pop().await {
            Some(ChannelMsg::Data { data }) => assert_eq!(data.len(), 2000),
            other => panic!("{other:?}"),
        }
        assert_eq!(sender.backlog().bytes(), 0);
    }
}
