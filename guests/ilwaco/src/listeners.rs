//! How many sockets listen.
//!
//! Each connection needs a socket that listens for it, and the TCP/IP library looks at every socket it has whenever something arrives, leaves or may be due. So a
//! server that could serve many at a time, and nearly always serves one or none, has [`STANDING`] listen, and one more begins as soon as fewer than [`LOW`]
//! do. Who cannot listen yet stands by.

use alloc::vec::Vec;
use core::{
    cell::{Cell, RefCell},
    future::poll_fn,
    task::{Context, Poll, Waker},
};

/// Sockets that listen when nobody has connected.
pub const STANDING: usize = 8;
/// If fewer do, one that stands by begins. Between this and [`STANDING`] lies what a server may serve at a time without that.
pub const LOW: usize = 6;

/// Those that listen and those that stand by.
#[derive(Debug, Default)]
pub struct Listeners {
    listening: Cell<usize>,
    /// Names those that stand by.
    next: Cell<u32>,
    waiting: RefCell<Vec<(u32, Waker)>>,
}

impl Listeners {
    /// None.
    pub const fn new() -> Listeners {
        Listeners { listening: Cell::new(0), next: Cell::new(0), waiting: RefCell::new(Vec::new()) }
    }

    /// Waits until one more is to listen. It does so until the result is dropped, which is to be when a connection takes its socket.
    pub async fn begin(&self) -> Listening<'_> {
        if self.listening.get() >= STANDING {
            let mut waiting = Waiting { listeners: self, name: None };
            poll_fn(|context| waiting.poll(context)).await;
            waiting.name = None;
        }
        self.listening.set(self.listening.get() + 1);
        Listening(self)
    }

    /// Has one begin, if too few listen. The one that came last: its memory was in use last.
    fn call(&self) {
        if self.listening.get() < LOW
            && let Some((_, waker)) = self.waiting.borrow_mut().pop()
        {
            waker.wake();
        }
    }
}

/// One that listens.
#[derive(Debug)]
pub struct Listening<'a>(&'a Listeners);

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.listening.set(self.0.listening.get() - 1);
        self.0.call();
    }
}

/// One that stands by.
struct Waiting<'a> {
    listeners: &'a Listeners,
    name: Option<u32>,
}

impl Waiting<'_> {
    fn poll(&mut self, context: &mut Context) -> Poll<()> {
        let mut waiting = self.listeners.waiting.borrow_mut();
        match self.name {
            None => {
                let name = self.listeners.next.get();
                self.listeners.next.set(name.wrapping_add(1));
                self.name = Some(name);
                waiting.push((name, context.waker().clone()));
                Poll::Pending
            }
            Some(name) => match waiting.iter_mut().find(|(other, _)| *other == name) {
                Some((_, waker)) => {
                    waker.clone_from(context.waker());
                    Poll::Pending
                }
                None => Poll::Ready(()),
            },
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(name) = self.name else { return };
        let mut waiting = self.listeners.waiting.borrow_mut();
        match waiting.iter().position(|(other, _)| *other == name) {
            Some(at) => drop(waiting.remove(at)),
            // It was called, and does not come.
            None => {
                drop(waiting);
                self.listeners.call();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::{future::Future, pin::Pin};
    use proptest::prelude::*;
    use std::{
        boxed::Box,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        task::Wake,
        vec::Vec,
    };

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// A task that waits to listen, and then listens.
    struct Task {
        woken: Arc<Woken>,
        future: Option<Pin<Box<dyn Future<Output = Listening<'static>>>>>,
        listening: Option<Listening<'static>>,
    }

    impl Task {
        fn new(listeners: &'static Listeners) -> Task {
            let mut task = Task { woken: Arc::default(), future: Some(Box::pin(listeners.begin())), listening: None };
            task.poll();
            task
        }

        fn poll(&mut self) {
            let waker = self.woken.clone().into();
            if let Some(future) = &mut self.future
                && let Poll::Ready(listening) = future.as_mut().poll(&mut Context::from_waker(&waker))
            {
                (self.future, self.listening) = (None, Some(listening));
            }
        }
    }

    fn listeners() -> &'static Listeners {
        Box::leak(Box::default())
    }

    fn run(tasks: &mut [Task]) {
        tasks.iter_mut().filter(|task| task.woken.0.swap(false, Ordering::Relaxed)).for_each(Task::poll);
    }

    #[test]
    fn a_few_listen_and_more_when_those_are_taken() {
        let listeners = listeners();
        let mut tasks: Vec<_> = (0..24).map(|_| Task::new(listeners)).collect();
        let listening = |tasks: &[Task]| tasks.iter().filter(|task| task.listening.is_some()).count();
        assert_eq!(listening(&tasks), STANDING);
        // So many at a time change nothing for the others, however often they come and go.
        for _ in 0..100 {
            tasks[0].listening = None;
            tasks[1].listening = None;
            run(&mut tasks);
            assert_eq!(listening(&tasks), LOW);
            for number in [0, 1] {
                tasks[number] = Task::new(listeners);
                assert!(tasks[number].listening.is_some());
            }
        }
        // All are taken, one after the other, but there are no more than all.
        for taken in 1..=24 {
            tasks.iter_mut().find(|task| task.listening.is_some()).unwrap().listening = None;
            run(&mut tasks);
            assert_eq!(listening(&tasks), (24 - taken).min(LOW.max(STANDING.saturating_sub(taken))));
        }
    }

    proptest! {
        #[test]
        fn enough_listen_whoever_is_dropped(steps in prop::collection::vec((0usize..20, any::<bool>()), 0..200)) {
            let listeners = listeners();
            let mut tasks: Vec<_> = (0..20).map(|_| Task::new(listeners)).collect();
            for (number, now) in steps {
                // Dropped, whether it listens, stands by or was called; and there again.
                tasks[number] = Task { woken: Arc::default(), future: None, listening: None };
                tasks[number] = Task::new(listeners);
                if now {
                    (0..2).for_each(|_| run(&mut tasks));
                    let listening = tasks.iter().filter(|task| task.listening.is_some()).count();
                    prop_assert!((LOW..=STANDING).contains(&listening), "{listening}");
                    prop_assert_eq!(listening, listeners.listening.get());
                    prop_assert_eq!(listening + listeners.waiting.borrow().len(), 20);
                }
            }
        }
    }
}
