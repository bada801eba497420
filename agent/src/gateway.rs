//! The gateway at the other end of a connection, and the credit that both give each other
//! ([`domain::credit`]).

use std::sync::Arc;

use bytes::Bytes;
use domain::credit::{FIRST, MOST, UNIT, given_by};
use russh::{
    ChannelId, ChannelMsg, ChannelWriteHalf, Error, Sig,
    server::{Handle, Msg},
};
use tokio::sync::Semaphore;

use crate::queue::Popped;

#[derive(Clone)]
pub struct Gateway {
    pub handle: Handle,
    /// Gives credit, and waits for ours.
    pub paced: bool,
}

impl Gateway {
    /// For a new channel.
    pub fn credit(&self) -> Credit {
        Credit(self.paced.then(|| Arc::new(Semaphore::new(FIRST as usize))))
    }

    /// Gives credit for what was taken from a channel's queue, without an end.
    pub async fn give(&self, channel: ChannelId, popped: Popped) {
        if !self.paced {
            return std::future::pending().await;
        }
        loop {
            popped.bytes(UNIT).await;
            if self.handle.xon_xoff_request(channel, true).await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// What may still be sent on one channel; without a limit to a gateway that gives none.
pub struct Credit(Option<Arc<Semaphore>>);

impl Credit {
    /// Adds what a message of the gateway gives.
    pub fn receive(&self, message: &ChannelMsg) {
        if let Some(left) = &self.0
            && let ChannelMsg::Signal { signal: Sig::Custom(name) } = message
            && let Some(bytes) = given_by(name)
            && left.available_permits() <= MOST as usize
        {
            left.add_permits(bytes as usize);
        }
    }

    /// Waits for some, and takes at most what is wanted; at least 1 byte if any is wanted.
    async fn take(&self, wanted: usize) -> usize {
        let Some(left) = &self.0 else { return wanted };
        let Ok(first) = left.acquire().await else { return wanted };
        first.forget();
        // Two streams of one channel take from the same: what one counts the other may take.
        let more = left.available_permits().min(wanted.saturating_sub(1));
        1 + left.forget_permits(more)
    }
}

/// A channel to the gateway, for data.
#[derive(Clone, Copy)]
pub struct Output<'a> {
    pub write: &'a ChannelWriteHalf<Msg>,
    pub credit: &'a Credit,
}

impl Output<'_> {
    /// `extended` is the data type code of RFC 4254, section 5.2: 1 for standard error.
    pub async fn send(&self, mut bytes: Bytes, extended: Option<u32>) -> Result<(), Error> {
        while !bytes.is_empty() {
            let length = self.credit.take(bytes.len()).await;
            let part = bytes.split_to(length.min(bytes.len()));
            match extended {
                None => self.write.data_bytes(part).await?,
                Some(code) => self.write.extended_data_bytes(code, part).await?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use domain::credit::signal;
    use futures::FutureExt;

    use super::*;

    fn paced() -> Credit {
        Credit(Some(Arc::new(Semaphore::new(FIRST as usize))))
    }

    #[tokio::test]
    async fn no_more_is_sent_than_there_is_credit_for() {
        let credit = paced();
        assert_eq!(credit.take(1000).await, 1000);
        assert_eq!(credit.take(1 << 20).await, FIRST as usize - 1000);
        assert_eq!(credit.take(1).now_or_never(), None);
        let more = Sig::Custom(signal(5));
        credit.receive(&ChannelMsg::Signal { signal: Sig::TERM });
        assert_eq!(credit.take(1).now_or_never(), None);
        credit.receive(&ChannelMsg::Signal { signal: more });
        assert_eq!(credit.take(9).await, 5);
    }

    #[tokio::test]
    async fn a_gateway_that_gives_far_too_much_changes_nothing() {
        let credit = paced();
        for _ in 0..100_000 {
            credit.receive(&ChannelMsg::Signal { signal: Sig::Custom(signal(MOST)) });
        }
        assert!(credit.take(usize::MAX).await <= 2 * MOST as usize);
    }

    #[tokio::test]
    async fn a_gateway_of_an_earlier_version_is_sent_everything() {
        assert_eq!(Credit(None).take(1 << 30).await, 1 << 30);
    }
}
