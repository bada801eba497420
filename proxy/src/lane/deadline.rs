//! One timer for all deadlines of a connection, one after the other.
//!
//! Registering a timer for each request costs more than a small request does. So the timer is left
//! where it is when a deadline moves back: it fires too early once in a while, and is then set anew.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep, sleep_until};

#[derive(Debug, Default)]
pub struct Deadline {
    timer: Option<Pin<Box<Sleep>>>,
    due: Option<Instant>,
}

impl Deadline {
    /// `None`: no deadline.
    pub fn set(&mut self, due: Option<Instant>) {
        self.due = due;
    }

    /// Ready when the deadline is over.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(due) = self.due else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() > due {
            timer.as_mut().reset(due);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= due {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }

    /// The future's output, or `None` when the deadline is over first.
    pub async fn bound<F: Future>(&mut self, due: Instant, future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        self.set(Some(due));
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.poll_over(cx).map(|()| None),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_is_kept_wherever_it_is_moved() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut deadline = Deadline::default();
        for (due, expected) in [(75, 75), (15, 75), (100, 100), (110, 110), (105, 110), (200, 200)]
        {
            assert!(deadline.bound(at(due), pending::<()>()).await.is_none());
            assert_eq!(start.elapsed().as_secs(), expected);
        }
        assert_eq!(deadline.bound(at(300), sleep(Duration::from_secs(50))).await, Some(()));
        assert!(deadline.bound(at(260), pending::<()>()).await.is_none());
        assert_eq!(start.elapsed().as_secs(), 260);
    }
}
