//! The second vCPU: it uses memory again that the first one hints at that moment, and may reset the
//! device under the first one's hands.
//!
//! The two share pages by handing them over: who hands a run of pages over does not touch it before
//! it is written. A page's kind is written last, so whoever finds that a page is in use finds all
//! of it.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

use crate::pages::{self, Kind};
use crate::phys::*;
use crate::rng::Rng;
use crate::virtio::{self, reg};

/// Where it begins, in low memory that the loader does not use: a page number below 256.
const START: u64 = 0x1_0000;
const LAPIC: u64 = 0xFEE0_0000;
const SPURIOUS: u64 = LAPIC + 0xF0;
const COMMAND: u64 = LAPIC + 0x300;
const DESTINATION: u64 = LAPIC + 0x310;
const INIT: u32 = 0x4500;
const START_UP: u32 = 0x4600;

/// One in so many turns of an idle second vCPU disturbs the device. Rarely: after a reset there are
/// no hints until the next migration.
const RARELY: u64 = 3_000_000;

static RUNS: AtomicBool = AtomicBool::new(false);
static MAY_RESET: AtomicBool = AtomicBool::new(false);
static NR_RESETS: AtomicU64 = AtomicU64::new(0);
static NR_WRITTEN: AtomicU64 = AtomicU64::new(0);
static RUN: [Run; 8] = [const { Run { start: AtomicU64::new(0), len: AtomicU64::new(0) } }; 8];

/// Pages that were handed over; a start of 0 means none.
struct Run {
    start: AtomicU64,
    len: AtomicU64,
}

/// Starts it. False: there is none.
pub fn start(may_reset: bool) -> bool {
    unsafe extern "C" {
        static second_start: u8;
        static second_end: u8;
    }
    MAY_RESET.store(may_reset, Relaxed);
    let (from, end) = (&raw const second_start, &raw const second_end);
    let len = end as usize - from as usize;
    for at in 0..len {
        // SAFETY: within the code that `boot.s` has between its two labels, and to low RAM, where
        // no Rust object lives.
        unsafe { ((START + at as u64) as *mut u8).write_volatile(from.add(at).read()) };
    }
    barrier();
    lapic_write(SPURIOUS, 0x1FF);
    for command in [INIT, START_UP | (START >> 12) as u32, START_UP | (START >> 12) as u32] {
        lapic_write(DESTINATION, 1 << 24);
        lapic_write(COMMAND, command);
        for _ in 0..20_000_000 {
            if RUNS.load(Acquire) {
                return true;
            }
            core::hint::spin_loop();
            if command == INIT {
                break;
            }
        }
    }
    RUNS.load(Acquire)
}

/// Hands pages over to be used. False: it has enough to do, or there is none.
pub fn hand_over(start: u64, len: u64) -> bool {
    let free = RUN.iter().find(|run| run.start.load(Acquire) == 0);
    let Some(run) = free.filter(|_| RUNS.load(Relaxed)) else { return false };
    run.len.store(len, Relaxed);
    run.start.store(start, Release);
    true
}

/// Whether it has pages of this range in its hands.
pub fn has(start: u64, len: u64) -> bool {
    RUN.iter().any(|run| {
        let first = run.start.load(Acquire);
        first != 0 && first < start + len && start < first + run.len.load(Relaxed)
    })
}

/// How often it has reset the device, and how many pages it has written.
pub fn counts() -> (u64, u64) {
    (NR_RESETS.load(Relaxed), NR_WRITTEN.load(Relaxed))
}

fn lapic_write(at: u64, value: u32) {
    // SAFETY: a register of the local APIC, which is mapped and has no memory behind it.
    unsafe {
        core::arch::asm!("mov dword ptr [{0}], {1:e}", in(reg) at, in(reg) value, options(nostack))
    }
}

/// Called by `boot.s` at CPL 3 on the second vCPU.
#[unsafe(no_mangle)]
extern "C" fn second_main() -> ! {
    let mut rng = Rng::new(2);
    RUNS.store(true, Release);
    loop {
        for run in &RUN {
            let start = run.start.load(Acquire);
            if start == 0 {
                continue;
            }
            for page in (start..start + run.len.load(Relaxed)).step_by(PAGE as usize) {
                pages::write(page, Kind::Honest);
                NR_WRITTEN.fetch_add(1, Relaxed);
            }
            run.start.store(0, Release);
        }
        if MAY_RESET.load(Relaxed) && rng.one_in(RARELY) {
            disturb(&mut rng);
        }
        core::hint::spin_loop();
    }
}

/// What the first vCPU finds in the middle of whatever it does. Nothing that says where its queues
/// are: then it would be it who lies.
fn disturb(rng: &mut Rng) {
    match rng.within(0..4) {
        0 | 1 => {
            NR_RESETS.fetch_add(1, Relaxed);
            virtio::write(reg::STATUS, 0);
        }
        2 => (0..5).for_each(|queue| virtio::write(reg::QUEUE_NOTIFY, queue)),
        _ => {
            let width = rng.pick(&[1, 2, 4, 8]);
            let at = reg::CONFIG + rng.within(0..24);
            let value = rng.next();
            mmio_write(at, width, value);
            mmio_read(at, width);
        }
    }
}
