//! vCPU threads: one per vCPU, running or parked.
//!
//! A vCPU's [`VcpuFd`] lives behind a mutex that its thread holds while it runs and gives up while
//! it is parked, so that state can be saved and restored by whoever paused the machine.
//!
//! **Parking.** The wish is set under the lock, then the thread is kicked with a signal until it
//! says that it is parked. One signal is not enough: it may arrive after the thread looked at the
//! wish but before it entered `KVM_RUN`. Repeating it each millisecond until the answer comes needs
//! no shared `kvm_run` page and no thread-local pointer in a signal handler.
//!
//! **Parked means whole.** After an exit for port or memory I/O, KVM finishes the instruction only
//! when `KVM_RUN` is entered again. A vCPU saved before that would lose the result of a read. So a
//! thread that parks first enters `KVM_RUN` with `immediate_exit` set until KVM says `EINTR`: it
//! completes the instruction and returns without running the guest.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd};
use wherry_devices::bus::Bus;

use crate::life::End;
use crate::life::ending::Ending;
use crate::sync::lock;

/// Where exits of a vCPU go.
#[derive(Clone)]
pub struct VcpuContext {
    /// Port I/O.
    pub pio: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
    /// Told when the vCPU stops by itself. Once the guest has ended, no vCPU goes on after its
    /// exit.
    pub ending: Arc<Ending>,
}

/// Why a vCPU stops by itself: [`End::Reset`], the old way (a triple fault), or [`End::Fatal`].
type Stopped = (End, String);

fn fatal(why: impl Into<String>) -> Option<Stopped> {
    Some((End::Fatal, why.into()))
}

/// How often a vCPU looks whether what its guest wrote has taken effect.
const SETTLE: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Park,
    Run,
    Quit,
}

struct Shared {
    wish: Mutex<Inner>,
    changed: Condvar,
    fd: Mutex<VcpuFd>,
}

struct Inner {
    wish: Wish,
    parked: bool,
    /// Stopped by itself (fatal, shutdown): parks for good.
    dead: bool,
}

/// One vCPU and its thread. Dropping it ends the thread.
pub struct Vcpu {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Signal that interrupts `KVM_RUN`. Its handler does nothing.
fn kick_signal() -> i32 {
    libc::SIGRTMIN()
}

/// Installs the empty handler for the kick signal. Call once, before any vCPU runs.
pub fn install_kick_handler() {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: the action is fully initialised, the handler does nothing and is async-signal-safe.
    // No SA_RESTART: KVM_RUN must return EINTR.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(i32) as usize;
        libc::sigaction(kick_signal(), &action, std::ptr::null_mut());
    }
}

impl Vcpu {
    /// Starts the thread, parked.
    pub fn spawn(id: u32, fd: VcpuFd, ctx: VcpuContext) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            wish: Mutex::new(Inner { wish: Wish::Park, parked: false, dead: false }),
            changed: Condvar::new(),
            fd: Mutex::new(fd),
        });
        let copy = shared.clone();
        let thread = wherry_threads::of_kind("vcpu")
            .named(format!("vcpu{id}"))
            .spawn(move || thread_main(&copy, &ctx))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Lets the vCPU run.
    pub fn run(&self) {
        self.set(Wish::Run);
    }

    /// Asks the vCPU to park; returns at once. See [`wait_parked`](Self::wait_parked).
    pub fn request_park(&self) {
        self.set(Wish::Park);
        self.kick();
    }

    /// Waits until the vCPU is parked and whole.
    pub fn wait_parked(&self) {
        let mut inner = lock(&self.shared.wish);
        while !inner.parked {
            let wait = self.shared.changed.wait_timeout(inner, Duration::from_millis(1));
            inner = wait.unwrap_or_else(PoisonError::into_inner).0;
            if !inner.parked {
                self.kick();
            }
        }
    }

    /// The vCPU itself, for state. Blocks unless it is parked.
    pub fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        lock(&self.shared.fd)
    }

    fn set(&self, wish: Wish) {
        let mut inner = lock(&self.shared.wish);
        inner.wish = wish;
        if wish == Wish::Run && !inner.dead {
            inner.parked = false;
        }
        self.shared.changed.notify_all();
    }

    fn kick(&self) {
        use std::os::unix::thread::JoinHandleExt;
        if let Some(t) = &self.thread {
            // SAFETY: the thread has not been joined (we hold its handle), so its pthread id is
            // valid; the signal has a handler.
            unsafe { libc::pthread_kill(t.as_pthread_t(), kick_signal()) };
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.set(Wish::Quit);
        while let Some(t) = &self.thread
            && !t.is_finished()
        {
            self.kick();
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

/// Says that the thread has panicked, if it has: nobody must wait for it, and the machine must end.
struct Panicked<'a>(&'a Shared, &'a VcpuContext);

impl Drop for Panicked<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // First, as everywhere: whoever finds it parked finds out why, too.
        let text = "a vCPU thread panicked: a defect of Wherry, see the VM's standard error";
        self.1.ending.note(End::Fatal, text);
        let mut inner = lock(&self.0.wish);
        (inner.dead, inner.parked) = (true, true);
        drop(inner);
        self.0.changed.notify_all();
    }
}

fn thread_main(shared: &Shared, ctx: &VcpuContext) {
    let _panicked = Panicked(shared, ctx);
    let mut unsettled = None;
    loop {
        let mut inner = lock(&shared.wish);
        while inner.wish == Wish::Park || (inner.dead && inner.wish != Wish::Quit) {
            // Each time round: a wish to run that was taken back before this thread saw it has
            // cleared it.
            inner.parked = true;
            shared.changed.notify_all();
            inner = shared.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        if inner.wish == Wish::Quit {
            return;
        }
        inner.parked = false;
        drop(inner);

        let mut fd = lock(&shared.fd);
        let over = || ctx.ending.is_over();
        let stop = || over() || lock(&shared.wish).wish != Wish::Run;
        let end = run_until(&mut fd, ctx, &mut unsettled, stop);
        drop(fd);
        if end.is_some() || over() {
            lock(&shared.wish).dead = true;
        }
        if let Some((end, why)) = end {
            ctx.ending.note(end, &why);
        }
    }
}

/// Runs until `stop` says so (`None`, and whole: see the module's doc) or the vCPU cannot go on.
/// `unsettled`: where it last wrote, if that may not have taken effect.
fn run_until(
    fd: &mut VcpuFd,
    ctx: &VcpuContext,
    unsettled: &mut Option<u64>,
    stop: impl Fn() -> bool,
) -> Option<Stopped> {
    let page: *const kvm_bindings::kvm_run = fd.get_kvm_run();
    fd.set_kvm_immediate_exit(0);
    let mut stopping = false;
    loop {
        if !stopping && stop() {
            // An access may take several exits to finish (each handled below); KVM says EINTR when
            // nothing is left of it.
            stopping = true;
            fd.set_kvm_immediate_exit(1);
        }
        if !stopping && unsettled.is_some_and(|addr| !ctx.mmio.settled(addr)) {
            std::thread::sleep(SETTLE);
            continue;
        }
        if !stopping {
            *unsettled = None;
        }
        match fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                // SAFETY: `page` is the run page of `fd`, and this an exit for I/O.
                let size = unsafe { element_size(page) };
                data.chunks_mut(size).for_each(|element| _ = ctx.pio.read(port.into(), element));
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                // SAFETY: `page` is the run page of `fd`, and this an exit for I/O.
                let size = unsafe { element_size(page) };
                data.chunks(size).for_each(|element| _ = ctx.pio.write(port.into(), element));
            }
            Ok(VcpuExit::MmioRead(addr, data)) => {
                ctx.mmio.read(addr, data);
            }
            Ok(VcpuExit::MmioWrite(addr, data)) => {
                ctx.mmio.write(addr, data);
                if ctx.mmio.may_last(addr, data) {
                    *unsettled = Some(addr);
                }
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {}
            Ok(VcpuExit::Shutdown) => return Some((End::Reset, String::new())),
            Ok(VcpuExit::InternalError) => return fatal(internal_error(fd)),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return fatal(format!(
                    "KVM could not enter the guest on cpu {cpu}: reason {reason:#x}"
                ));
            }
            Ok(other) => return fatal(format!("unexpected KVM exit: {other:?}")),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                if stopping {
                    return None;
                }
            }
            Err(e) => return fatal(format!("KVM_RUN failed: {e}")),
        }
    }
}

/// Bytes of one element of a port access: a string instruction (`rep insb`) moves several in one
/// exit.
///
/// # Safety
/// `page` must be mapped as a run page, and the last exit of its vCPU be KVM_EXIT_IO.
unsafe fn element_size(page: *const kvm_bindings::kvm_run) -> usize {
    // SAFETY: of this exit KVM filled the `io` member; any bit pattern is valid. The data that
    // kvm-ioctls lends lies behind the structure.
    let size = unsafe { (*page).__bindgen_anon_1.io.size };
    usize::from(size).max(1)
}

/// What KVM says in the run page about an internal error, with the guest's position.
fn internal_error(fd: &mut VcpuFd) -> String {
    let rip = fd.get_regs().map_or(0, |r| r.rip);
    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which KVM filled the `internal`
    // member; any bit pattern is valid.
    let suberror = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let what = match suberror {
        1 => "KVM could not emulate an instruction (a software KVM? `wherry doctor` tells)",
        2 => "simultaneous exceptions",
        3 => "an exit while delivering an event",
        _ => "unknown",
    };
    format!("KVM internal error {suberror}: {what}, at guest rip {rip:#x}")
}

#[cfg(test)]
mod tests;
