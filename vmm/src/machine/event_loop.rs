//! The one event loop that serves all devices (event-manager on a thread of its own).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use wherry_devices::device::Subscriber;

use crate::life::End;
use crate::life::ending::Ending;

/// The running loop. Dropping it ends the thread, and with it the devices' work.
pub struct EventLoop {
    quit: Arc<AtomicBool>,
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

/// Wakes the loop so that it sees `quit`.
struct Wake(EventFd);

impl MutEventSubscriber for Wake {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        let _ = self.0.read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        let _ = ops.add(Events::new(&self.0, EventSet::IN));
    }
}

impl EventLoop {
    /// Starts the loop with these subscribers. If it ends by itself no device works any more, and
    /// the machine is over.
    pub fn spawn(subscribers: Vec<Subscriber>, ending: Arc<Ending>) -> io::Result<Self> {
        let quit = Arc::new(AtomicBool::new(false));
        let wake = EventFd::new(EFD_NONBLOCK)?;
        let mut manager =
            EventManager::<Subscriber>::new().map_err(|e| io::Error::other(e.to_string()))?;
        for s in subscribers {
            manager.add_subscriber(s);
        }
        manager.add_subscriber(Box::new(Wake(wake.try_clone()?)));
        let stop = quit.clone();
        let thread = wherry_threads::of_kind("devices").spawn(move || {
            let served = catch_unwind(AssertUnwindSafe(|| {
                while !stop.load(Ordering::Acquire) {
                    // EINTR is the only error here that can occur and pass.
                    let _ = manager.run();
                }
            }));
            if served.is_err() {
                let text =
                    "the devices' thread panicked: a defect of Wherry, see the VM's standard error";
                ending.note(End::Fatal, text);
            }
        })?;
        Ok(Self { quit, wake, thread: Some(thread) })
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.quit.store(true, Ordering::Release);
        let _ = self.wake.write(1);
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    struct Broken(EventFd, Sender<()>);

    impl MutEventSubscriber for Broken {
        fn process(&mut self, _: Events, _: &mut EventOps) {
            self.1.send(()).unwrap();
            panic!("injected");
        }

        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }
    }

    #[test]
    fn a_panic_in_a_device_ends_the_machine() {
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        kick.write(1).unwrap();
        let (sender, at_work) = channel();
        let ending = Arc::new(Ending::new(Arc::default()));
        let broken = Box::new(Broken(kick, sender));
        let running = EventLoop::spawn(vec![broken], ending.clone()).unwrap();
        at_work.recv().unwrap();
        drop(running);
        assert_eq!(ending.end(), Some(End::Fatal));
        assert!(ending.why().contains("panicked"), "{}", ending.why());
    }
}
