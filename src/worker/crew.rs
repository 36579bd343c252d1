//! Many futures polled in one task, each in a place that the next one takes over.
//!
//! It does what `FuturesUnordered` does, which asks the allocator for every future anew. A handler's future has some kilobytes: more than
//! the allocator has at hand, so that it had to split and merge free memory for every invite. Here a place stays when its future has
//! ended; there are as many as there ever were futures at once.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

/// The futures, and who of them was woken.
#[derive(Debug)]
pub(super) struct Crew<F> {
    places: Vec<Place<F>>,
    /// Places without a future.
    free: Vec<usize>,
    /// Places to poll, in the order in which they were woken.
    turn: VecDeque<usize>,
    called: Arc<Called>,
}

#[derive(Debug)]
struct Place<F> {
    future: Pin<Box<Option<F>>>,
    bell: Arc<Bell>,
    /// Rings the bell.
    waker: Waker,
}

/// Wakes the future in a place, whichever it is by then: one more poll does no harm.
#[derive(Debug)]
struct Bell {
    place: usize,
    /// It rang, and the place was not polled since.
    rung: AtomicBool,
    called: Arc<Called>,
}

/// The places that were called since the last look, and the task to wake with the first of them.
#[derive(Debug, Default)]
struct Called(Mutex<(VecDeque<usize>, Option<Waker>)>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            let task = {
                let (places, task) = &mut *self.called.0.lock();
                places.push_back(self.place);
                task.take()
            };
            if let Some(task) = task {
                task.wake();
            }
        }
    }
}

impl<F: Future> Crew<F> {
    /// One without futures.
    pub(super) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new(), turn: VecDeque::new(), called: Arc::default() }
    }

    /// Whether no future is left.
    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// One more future. It is polled with the next turn.
    pub(super) fn push(&mut self, future: F) {
        let number = self.free.pop().unwrap_or_else(|| {
            let (place, called) = (self.places.len(), Arc::clone(&self.called));
            let bell = Arc::new(Bell { place, rung: AtomicBool::new(false), called });
            let waker = Waker::from(Arc::clone(&bell));
            self.places.push(Place { future: Box::pin(None), bell, waker });
            place
        });
        let place = &mut self.places[number];
        place.future.set(Some(future));
        // Where a late call for the one before is still in the queue, it will do.
        if !place.bell.rung.swap(true, Ordering::AcqRel) {
            self.turn.push_back(number);
        }
    }

    /// Polls everyone who was woken before, once, and tells of each that has ended, or died. Who is woken meanwhile has the next turn:
    /// then the task is woken again, so that others have theirs in between.
    pub(super) fn poll_turn(
        &mut self,
        cx: &mut Context<'_>,
        mut ended: impl FnMut(std::thread::Result<F::Output>),
    ) {
        {
            let (places, task) = &mut *self.called.0.lock();
            self.turn.append(places);
            task.take();
        }
        while let Some(number) = self.turn.pop_front() {
            let Place { future, bell, waker } = &mut self.places[number];
            // Swapped, not stored: what was written before a call that found it rung is seen by this poll.
            bell.rung.swap(false, Ordering::AcqRel);
            let Some(working) = future.as_mut().as_pin_mut() else { continue };
            let mut cx = Context::from_waker(waker);
            let result = match catch_unwind(AssertUnwindSafe(|| working.poll(&mut cx))) {
                Ok(Poll::Pending) => continue,
                Ok(Poll::Ready(output)) => Ok(output),
                Err(panic) => Err(panic),
            };
            future.set(None);
            self.free.push(number);
            ended(result);
        }
        let some_were_woken = {
            let (places, task) = &mut *self.called.0.lock();
            if places.is_empty() {
                *task = Some(cx.waker().clone());
            }
            !places.is_empty()
        };
        if some_were_woken {
            cx.waker().wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use tokio::sync::oneshot;
    use tokio::task::yield_now;
    use tokio::time::timeout;

    use super::*;

    type Any = BoxFuture<'static, u32>;

    /// What has ended in one turn; `None` for one that died.
    fn turn(crew: &mut Crew<Any>, cx: &mut Context<'_>) -> Vec<Option<u32>> {
        let mut ended = Vec::new();
        crew.poll_turn(cx, |result| ended.push(result.ok()));
        ended
    }

    /// Everything that ends until nobody is left. A call that is lost shows as nobody's turn.
    async fn all(crew: &mut Crew<Any>) -> Vec<Option<u32>> {
        let mut ended = Vec::new();
        let ending = poll_fn(|cx| {
            ended.extend(turn(crew, cx));
            if crew.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        timeout(Duration::from_mins(1), ending).await.expect("everyone who was woken has a turn");
        ended
    }

    #[tokio::test]
    async fn a_place_is_taken_over_by_the_next_one() {
        let mut crew = Crew::new();
        let (first, waits) = oneshot::channel();
        crew.push(async { waits.await.expect("it is told") }.boxed());
        for number in 0..100 {
            crew.push(async move { number }.boxed());
            let ended = poll_fn(|cx| Poll::Ready(turn(&mut crew, cx))).await;
            assert_eq!(ended, [Some(number)]);
        }
        first.send(7).expect("it still waits");
        assert_eq!(all(&mut crew).await, [Some(7)]);
        assert_eq!(crew.places.len(), 2);
        assert!(crew.is_empty());
    }

    #[tokio::test]
    async fn everyone_is_polled_when_woken_from_wherever() {
        let mut crew = Crew::new();
        let (mut tell, mut expected) = (Vec::new(), Vec::new());
        for number in 0..200 {
            let (told, wait) = oneshot::channel();
            tell.push(told);
            expected.push(Some(number));
            crew.push(async move { wait.await.expect("it is told") }.boxed());
        }
        let telling = std::thread::spawn(move || {
            for (told, number) in tell.into_iter().zip(0..) {
                told.send(number).expect("somebody waits");
            }
        });
        let mut ended = all(&mut crew).await;
        ended.sort_unstable();
        assert_eq!(ended, expected);
        telling.join().expect("it told all");
    }

    #[tokio::test]
    async fn who_is_woken_in_a_turn_has_the_next_one() {
        let mut crew = Crew::new();
        crew.push(
            async {
                yield_now().await;
                1
            }
            .boxed(),
        );
        crew.push(async { 2 }.boxed());
        let first = poll_fn(|cx| Poll::Ready(turn(&mut crew, cx))).await;
        assert_eq!(first, [Some(2)]);
        assert_eq!(all(&mut crew).await, [Some(1)]);
    }

    #[tokio::test]
    async fn one_that_dies_takes_nobody_along() {
        let mut crew = Crew::new();
        crew.push(
            async {
                yield_now().await;
                1
            }
            .boxed(),
        );
        crew.push(async { panic!("on purpose") }.boxed());
        crew.push(async { 3 }.boxed());
        assert_eq!(all(&mut crew).await, [None, Some(3), Some(1)]);
        crew.push(async { 4 }.boxed());
        assert_eq!(all(&mut crew).await, [Some(4)]);
        assert_eq!(crew.places.len(), 3);
    }

    #[test]
    fn a_call_for_one_that_has_ended_is_spent_on_its_successor() {
        let mut crew = Crew::new();
        let mut cx = Context::from_waker(Waker::noop());
        crew.push(async { 1 }.boxed());
        let late = crew.places[0].waker.clone();
        assert_eq!(turn(&mut crew, &mut cx), [Some(1)]);
        late.wake_by_ref();
        crew.push(async { 2 }.boxed());
        assert_eq!(turn(&mut crew, &mut cx), [Some(2)], "it is in the queue once, and polled");
        late.wake();
        assert_eq!(turn(&mut crew, &mut cx), []);
        assert!(crew.is_empty());
    }
}
