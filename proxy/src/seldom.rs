//! For futures that hardly ever have anything to say beside one that is polled all the time.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures::task::AtomicWaker;
use pin_project_lite::pin_project;

/// Polls `future` at first and then only when it was woken itself, so that waiting for a shutdown
/// beside every read costs one look at a flag.
pub fn seldom<F: Future>(future: F) -> Seldom<F> {
    let bell = Arc::new(Bell { rung: AtomicBool::new(true), outer: AtomicWaker::new() });
    Seldom { future, waker: Waker::from(bell.clone()), bell }
}

struct Bell {
    rung: AtomicBool,
    outer: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.outer.wake();
    }
}

pin_project! {
    /// See [`seldom`].
    pub struct Seldom<F> {
        #[pin]
        future: F,
        bell: Arc<Bell>,
        waker: Waker,
    }
}

impl<F: Future> Future for Seldom<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        // First the waker, then the flag: a ring between the two is seen or wakes again.
        this.bell.outer.register(cx.waker());
        if !this.bell.rung.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Taken back before the future looks, so that a ring while it does is not lost.
        this.bell.rung.swap(false, Ordering::AcqRel);
        this.future.poll(&mut Context::from_waker(this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::atomic::AtomicUsize};

    use tokio_util::sync::CancellationToken;

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_ready(future: Pin<&mut impl Future>, counter: &Arc<Counter>) -> bool {
        future.poll(&mut Context::from_waker(&Waker::from(counter.clone()))).is_ready()
    }

    #[test]
    fn it_is_polled_when_it_was_woken_and_not_otherwise() {
        let (polled, token) = (AtomicUsize::new(0), CancellationToken::new());
        let mut inner = Box::pin(token.cancelled());
        let counted = poll_fn(|cx| {
            polled.fetch_add(1, Ordering::Relaxed);
            inner.as_mut().poll(cx)
        });
        let mut waiting = std::pin::pin!(seldom(counted));
        let counter = Arc::default();
        for _ in 0..3 {
            assert!(!is_ready(waiting.as_mut(), &counter));
        }
        assert_eq!(polled.load(Ordering::Relaxed), 1);
        token.cancel();
        assert_eq!(counter.0.load(Ordering::Relaxed), 1);
        assert!(is_ready(waiting.as_mut(), &counter));
    }

    #[test]
    fn another_task_that_takes_it_over_is_woken() {
        let token = CancellationToken::new();
        let mut waiting = std::pin::pin!(seldom(token.cancelled()));
        let (first, second) = (Arc::default(), Arc::default());
        assert!(!is_ready(waiting.as_mut(), &first));
        assert!(!is_ready(waiting.as_mut(), &second));
        token.cancel();
        assert_eq!(first.0.load(Ordering::Relaxed), 0);
        assert_eq!(second.0.load(Ordering::Relaxed), 1);
    }
}
