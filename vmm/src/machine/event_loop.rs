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
    /// Starts the loop with these subscribers. `failed` is told, on the loop's thread, that it has
    /// ended by itself: then no device works any more.
    pub fn spawn(
        subscribers: Vec<Subscriber>,
        failed: impl Fn(&str) + Send + 'static,
    ) -> io::Result<Self> {
        let quit = Arc::new(AtomicBool::new(false));
        let wake = EventFd::new(EFD_NONBLOCK)?;
        let mut manager =
            EventManager::<Subscriber>::new().map_err(|e| io::Error::other(e.to_string()))?;
        for s in subscribers {
            manager.add_subscriber(s);
        }
        manager.add_subscriber(Box::new(Wake(wake.try_clone()?)));
        let stop = quit.clone();
        let thread = std::thread::Builder::new().name("devices".into()).spawn(move || {
            let served = catch_unwind(AssertUnwindSafe(|| {
                while !stop.load(Ordering::Acquire) {
                    // EINTR is the only error here that can occur and pass.
                    let _ = manager.run();
                }
            }));
            if served.is_err() {
                failed(
                    "the devices' thread panicked: a defect of Wherry, see the VM's standard error",
                );
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
    use std::sync::mpsc::channel;

    use super::*;

    struct Broken(EventFd);

    impl MutEventSubscriber for Broken {
        fn process(&mut self, _: Events, _: &mut EventOps) {
            panic!("injected");
        }

        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }
    }

    #[test]
    fn a_panic_in_a_device_is_told() {
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        kick.write(1).unwrap();
        let (sender, told) = channel();
        let broken = Box::new(Broken(kick));
        let tell = move |why: &str| sender.send(why.to_owned()).unwrap();
        let running = EventLoop::spawn(vec![broken], tell).unwrap();
        assert!(told.recv().unwrap().contains("panicked"));
        drop(running);
    }
}
