//! Small guests in real mode, on KVM where there is one.

use std::sync::mpsc::channel;

use kvm_ioctls::VmFd;
use wherry_devices::BusDevice;
use wherry_tests::needs::KVM;

use super::*;
use crate::kvm::open_kvm;

fn context(pio: Bus, ending: Arc<Ending>) -> VcpuContext {
    VcpuContext { pio: Arc::new(pio), mmio: Arc::new(Bus::new()), ending }
}

/// A vCPU in real mode at 0x1000, with `code` there; `None` without a KVM.
fn real_mode(code: &[u8], context: VcpuContext) -> Option<(Vcpu, VmFd)> {
    let vm = KVM.or_not_run(open_kvm())?.create_vm().unwrap();
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
    unsafe { vm.set_user_memory_region(region) }.unwrap();
    let fd = vm.create_vcpu(0).unwrap();
    let mut sregs = fd.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    fd.set_sregs(&sregs).unwrap();
    let regs = kvm_bindings::kvm_regs { rip: 0x1000, rflags: 2, ..Default::default() };
    fd.set_regs(&regs).unwrap();
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

/// Only so that a test that fails does not hang.
const GUARD: Duration = Duration::from_secs(60);

/// Waits until the thread says by itself that it is parked.
fn parks(vcpu: &Vcpu) {
    let inner = lock(&vcpu.shared.wish);
    let parked = vcpu.shared.changed.wait_timeout_while(inner, GUARD, |inner| !inner.parked);
    assert!(parked.unwrap().0.parked, "whoever waits for it waits for ever");
}

fn ending() -> Arc<Ending> {
    Arc::new(Ending::new(Arc::default()))
}

#[test]
fn a_panic_in_a_device_ends_the_machine_and_holds_up_nobody() {
    let ending = ending();
    let context = context(bus(|| panic!("injected")), ending.clone());
    let Some((vcpu, _vm)) = real_mode(&OUT_LOOP, context) else { return };
    vcpu.run();
    parks(&vcpu);
    assert!(ending.end() == Some(End::Fatal) && ending.why().contains("panicked"));
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
    let ending = ending();
    let writes = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let (count, over) = (writes.clone(), ending.clone());
    let port = bus(move || {
        let before = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(before, 0, "it runs on after its own end");
        over.note(End::PowerOff, "");
    });
    let Some((vcpu, _vm)) = real_mode(&OUT_LOOP, context(port, ending)) else { return };
    vcpu.wait_parked();
    vcpu.run();
    // Nobody asks it to.
    parks(&vcpu);
    let writes = writes.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(writes, 1, "it ran on after its own end");
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
    let context = VcpuContext { mmio: Arc::new(mmio), ..context(ports, ending()) };
    let Some((vcpu, _vm)) = real_mode(&code, context) else { return };
    let next = || log.recv_timeout(GUARD).unwrap();
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

/// Is never through, but for what nobody has to wait for.
struct Other;

impl BusDevice for Other {
    fn read(&mut self, _: u64, _: &mut [u8]) {}
    fn write(&mut self, _: u64, _: &[u8]) {}
    fn may_last(&self, _: u64, data: &[u8]) -> bool {
        data == [1]
    }
    fn settled(&mut self) -> bool {
        false
    }
}

#[test]
fn a_vcpu_does_not_wait_for_what_another_wrote() {
    let code = [
        0xB0, 0x02, // mov al, 2
        0xA2, 0x00, 0x30, // mov [0x3000], al
        0xE6, 0x10, // out 0x10, al
        0xEB, 0xFE, // for ever
    ];
    let (sender, log) = channel();
    let ports = bus(move || sender.send(()).unwrap());
    let mut mmio = Bus::new();
    mmio.insert(0x3000, 1, Arc::new(Mutex::new(Other))).unwrap();
    let context = VcpuContext { mmio: Arc::new(mmio), ..context(ports, ending()) };
    let Some((vcpu, _vm)) = real_mode(&code, context) else { return };
    vcpu.run();
    log.recv_timeout(GUARD).expect("it goes on");
}

/// Tells of each access: port and what went over it. A read gives the port's number.
struct Told(u8, std::sync::mpsc::Sender<(u8, Vec<u8>)>);

impl BusDevice for Told {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
        self.1.send((self.0 + offset as u8, data.to_vec())).unwrap();
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.1.send((self.0 + offset as u8, data.to_vec())).unwrap();
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
    let Some((vcpu, _vm)) = real_mode(&code, context(bus, ending())) else { return };
    vcpu.run();
    let next = || accesses.recv_timeout(GUARD).unwrap();
    let got: Vec<_> = std::iter::repeat_with(next).take_while(|(port, _)| *port != 0x20).collect();
    // In how many exits is KVM's choice; each access is of one element at the one port.
    let reads = std::iter::repeat_n((0x1D, vec![0xD]), 6);
    let writes = std::iter::repeat_n((0x12, vec![0xD; 2]), 3);
    assert_eq!(got, reads.chain(writes).collect::<Vec<_>>());
}

#[test]
fn a_vcpu_that_is_parked_again_at_once_says_so() {
    let Some(kvm) = KVM.or_not_run(open_kvm()) else { return };
    let vm = kvm.create_vm().unwrap();
    install_kick_handler();
    let context = context(Bus::new(), ending());
    let vcpu = Vcpu::spawn(0, vm.create_vcpu(0).unwrap(), context).unwrap();
    vcpu.wait_parked();
    for _ in 0..100 {
        vcpu.run();
        vcpu.request_park();
        vcpu.wait_parked();
    }
}
