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

use crate::sync::lock;

/// What a vCPU thread tells the machine, at most once each time it stops by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VcpuEvent {
    /// Triple fault: the guest asked for a reset the old way.
    Shutdown,
    /// The vCPU cannot go on.
    Fatal(String),
}

/// Where exits of a vCPU go.
#[derive(Clone)]
pub struct VcpuContext {
    /// Port I/O.
    pub pio: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
    /// Told when the vCPU stops by itself. Called on the vCPU's thread; must not block on the
    /// machine.
    pub on_event: Arc<dyn Fn(VcpuEvent) + Send + Sync>,
    /// Whether the guest has ended itself: then no vCPU goes on after its exit.
    pub is_over: Arc<dyn Fn() -> bool + Send + Sync>,
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
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{id}"))
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
        (self.1.on_event)(VcpuEvent::Fatal(text.into()));
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
        let stop = || (ctx.is_over)() || lock(&shared.wish).wish != Wish::Run;
        let end = run_until(&mut fd, ctx, &mut unsettled, stop);
        drop(fd);
        if end.is_some() || (ctx.is_over)() {
            lock(&shared.wish).dead = true;
        }
        if let Some(event) = end {
            (ctx.on_event)(event);
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
) -> Option<VcpuEvent> {
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
                *unsettled = Some(addr);
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {}
            Ok(VcpuExit::Shutdown) => return Some(VcpuEvent::Shutdown),
            Ok(VcpuExit::InternalError) => return Some(VcpuEvent::Fatal(internal_error(fd))),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return Some(VcpuEvent::Fatal(format!(
                    "KVM could not enter the guest on cpu {cpu}: reason {reason:#x}"
                )));
            }
            Ok(other) => return Some(VcpuEvent::Fatal(format!("unexpected KVM exit: {other:?}"))),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                if stopping {
                    return None;
                }
            }
            Err(e) => return Some(VcpuEvent::Fatal(format!("KVM_RUN failed: {e}"))),
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
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use kvm_ioctls::{Kvm, VmFd};
    use wherry_devices::BusDevice;

    use super::*;

    fn context(pio: Bus, on_event: Arc<dyn Fn(VcpuEvent) + Send + Sync>) -> VcpuContext {
        VcpuContext {
            pio: Arc::new(pio),
            mmio: Arc::new(Bus::new()),
            on_event,
            is_over: Arc::new(|| false),
        }
    }

    /// A vCPU in real mode at 0x1000, with `code` there; `None` without a KVM that runs it.
    fn real_mode(code: &[u8], context: VcpuContext) -> Option<(Vcpu, VmFd)> {
        let vm = Kvm::new().ok()?.create_vm().ok()?;
        install_kick_handler();
        let mut page = vec![0u8; 0x3000];
        let start = page.as_ptr().align_offset(4096);
        page[start..][..code.len()].copy_from_slice(code);
        let page: &'static mut [u8] = page.leak();
        let region = kvm_bindings::kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0x1000,
            memory_size: 0x1000,
            userspace_addr: page[start..].as_ptr() as u64,
        };
        // SAFETY: the region lies in memory that is leaked, so it outlives the VM.
        unsafe { vm.set_user_memory_region(region) }.ok()?;
        let fd = vm.create_vcpu(0).ok()?;
        let mut sregs = fd.get_sregs().ok()?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        fd.set_sregs(&sregs).ok()?;
        let regs = kvm_bindings::kvm_regs { rip: 0x1000, rflags: 2, ..Default::default() };
        fd.set_regs(&regs).ok()?;
        Some((Vcpu::spawn(0, fd, context).unwrap(), vm))
    }

    /// Writes to a port for ever.
    const OUT_LOOP: [u8; 5] = [0xe6, 0x10, 0xeb, 0xfc, 0xf4];

    struct Port<F>(F);

    impl<F: FnMut() + Send> BusDevice for Port<F> {
        fn read(&mut self, _: u64, _: &mut [u8]) {}
        fn write(&mut self, _: u64, _: &[u8]) {
            (self.0)();
        }
    }

    fn bus(write: impl FnMut() + Send + 'static) -> Bus {
        let mut bus = Bus::new();
        bus.insert(0x10, 1, Arc::new(Mutex::new(Port(write)))).unwrap();
        bus
    }

    fn told() -> (Arc<dyn Fn(VcpuEvent) + Send + Sync>, Receiver<VcpuEvent>) {
        let (sender, events) = channel();
        let sender = Mutex::new(sender);
        (Arc::new(move |event| lock(&sender).send(event).unwrap()), events)
    }

    #[test]
    fn a_panic_in_a_device_ends_the_machine_and_holds_up_nobody() {
        let (on_event, events) = told();
        let context = context(bus(|| panic!("injected")), on_event);
        let Some((vcpu, _vm)) = real_mode(&OUT_LOOP, context) else { return };
        vcpu.run();
        let told = events.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(matches!(&told, VcpuEvent::Fatal(why) if why.contains("panicked")), "{told:?}");
        // None of these waits for the thread that is gone.
        vcpu.request_park();
        vcpu.wait_parked();
        vcpu.run();
        vcpu.request_park();
        vcpu.wait_parked();
        assert!(vcpu.fd().get_regs().is_ok());
    }

    #[test]
    fn a_vcpu_whose_guest_has_ended_parks_by_itself() {
        let over = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let (count, looked) = (over.clone(), over.clone());
        let writes = bus(move || {
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        });
        let is_over = Arc::new(move || looked.load(std::sync::atomic::Ordering::SeqCst) > 0);
        let context = VcpuContext { is_over, ..context(writes, Arc::new(|_| {})) };
        let Some((vcpu, _vm)) = real_mode(&OUT_LOOP, context) else { return };
        vcpu.wait_parked();
        vcpu.run();
        // Nobody asks it to.
        let mut inner = lock(&vcpu.shared.wish);
        while !inner.parked {
            inner = vcpu.shared.changed.wait(inner).unwrap();
        }
        assert_eq!(
            over.load(std::sync::atomic::Ordering::SeqCst),
            1,
            "it ran on after its own end"
        );
    }

    /// Tells of its guest's write and of each look at it, until it is to be over.
    struct Lasting(std::sync::mpsc::Sender<&'static str>, Arc<std::sync::atomic::AtomicBool>);

    impl BusDevice for Lasting {
        fn read(&mut self, _: u64, _: &mut [u8]) {}
        fn write(&mut self, _: u64, _: &[u8]) {
            self.0.send("write").unwrap();
        }
        fn settled(&mut self) -> bool {
            let over = self.1.load(std::sync::atomic::Ordering::SeqCst);
            self.0.send(if over { "over" } else { "not over" }).unwrap();
            over
        }
    }

    #[test]
    fn a_vcpu_does_not_outrun_what_it_wrote_and_parks_meanwhile() {
        let code = [
            0xA2, 0x00, 0x30, // mov [0x3000], al
            0xE6, 0x10, // out 0x10, al
            0xEB, 0xFE, // for ever
        ];
        let (sender, log) = channel();
        let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let on = sender.clone();
        let ports = bus(move || on.send("goes on").unwrap());
        let mut mmio = Bus::new();
        let device = Lasting(sender, over.clone());
        mmio.insert(0x3000, 1, Arc::new(Mutex::new(device))).unwrap();
        let context = VcpuContext { mmio: Arc::new(mmio), ..context(ports, Arc::new(|_| {})) };
        let Some((vcpu, _vm)) = real_mode(&code, context) else { return };
        let next = || log.recv_timeout(Duration::from_secs(60)).unwrap();
        vcpu.run();
        assert_eq!([(); 3].map(|()| next()), ["write", "not over", "not over"]);
        vcpu.request_park();
        vcpu.wait_parked();
        assert_eq!(vcpu.fd().get_regs().unwrap().rip, 0x1003, "whole");
        while log.try_recv().is_ok() {}
        vcpu.run();
        assert_eq!(next(), "not over", "it still waits");
        over.store(true, std::sync::atomic::Ordering::SeqCst);
        let rest: Vec<_> =
            std::iter::repeat_with(next).skip_while(|s| *s == "not over").take(2).collect();
        assert_eq!(rest, ["over", "goes on"]);
    }

    /// Tells of each access: port and width. A read gives the port's number.
    struct Told(u8, std::sync::mpsc::Sender<(u8, usize)>);

    impl BusDevice for Told {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            self.1.send((self.0 + offset as u8, data.len())).unwrap();
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.1.send((self.0 + offset as u8, data.len())).unwrap();
            assert!(self.0 == 0x20 || *data == [0xD; 2], "written: {data:?}");
        }
    }

    #[test]
    fn string_io_stays_at_its_port() {
        let code = [
            0xBA, 0x1D, 0x00, // mov dx, 0x1d
            0xBF, 0x00, 0x18, // mov di, 0x1800
            0xB9, 0x06, 0x00, // mov cx, 6
            0xF3, 0x6C, // rep insb
            0xBA, 0x12, 0x00, // mov dx, 0x12
            0xBE, 0x00, 0x18, // mov si, 0x1800
            0xB9, 0x03, 0x00, // mov cx, 3
            0xF3, 0x6F, // rep outsw
            0xE6, 0x20, // out 0x20, al
            0xEB, 0xFE, // for ever
        ];
        let (sender, accesses) = channel();
        let mut bus = Bus::new();
        for (base, len) in [(0x10, 16), (0x20, 1)] {
            let told = Told(base, sender.clone());
            bus.insert(base.into(), len, Arc::new(Mutex::new(told))).unwrap();
        }
        let (on_event, _events) = told();
        let Some((vcpu, _vm)) = real_mode(&code, context(bus, on_event)) else { return };
        vcpu.run();
        let next = || accesses.recv_timeout(Duration::from_secs(60)).unwrap();
        // In how many exits is KVM's choice; each access is of one element at the one port.
        assert_eq!([(); 6].map(|()| next()), [(0x1D, 1); 6]);
        assert_eq!([(); 3].map(|()| next()), [(0x12, 2); 3]);
        assert_eq!(next(), (0x20, 1));
    }

    #[test]
    fn a_vcpu_that_is_parked_again_at_once_says_so() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else { return };
        let Ok(vm) = kvm.create_vm() else { return };
        install_kick_handler();
        let context = context(Bus::new(), Arc::new(|_| {}));
        let vcpu = Vcpu::spawn(0, vm.create_vcpu(0).unwrap(), context).unwrap();
        vcpu.wait_parked();
        for _ in 0..100 {
            vcpu.run();
            vcpu.request_park();
            vcpu.wait_parked();
        }
    }
}
