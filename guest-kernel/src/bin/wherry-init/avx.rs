//! A thread whose state is in AVX registers and nowhere else, nearly all the time.
//!
//! Random values go into all sixteen registers, the CPU counts down for some ten milliseconds, and
//! what comes out is compared. So where the VMM stops it, nothing but the vCPU's state has them,
//! unless the kernel has just put another thread in its place.

use std::arch::asm;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;

static STARTED: AtomicBool = AtomicBool::new(false);
static ROUNDS: AtomicU64 = AtomicU64::new(0);
static BAD: AtomicU64 = AtomicU64::new(0);

/// Steps of the countdown.
const STEPS: u64 = 4_000_000;

type Registers = [[u64; 4]; 16];

/// Starts the thread, if it does not run. How often it has compared, and how often in vain; `None`
/// on a CPU without AVX.
pub fn status() -> Option<(u64, u64)> {
    if !std::arch::is_x86_feature_detected!("avx") {
        return None;
    }
    if !STARTED.swap(true, Relaxed) {
        thread::spawn(|| {
            let mut seed = 1;
            loop {
                seed += 1;
                let put = values(seed);
                let mut got = values(0);
                // SAFETY: the CPU has AVX, and the kernel keeps its registers: looked at above.
                unsafe { hold(&put, &mut got) };
                BAD.fetch_add(u64::from(put != got), Relaxed);
                ROUNDS.fetch_add(1, Relaxed);
            }
        });
    }
    Some((ROUNDS.load(Relaxed), BAD.load(Relaxed)))
}

/// Different in each register and each round.
fn values(seed: u64) -> Registers {
    let mut n = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    [(); 16].map(|()| {
        [(); 4].map(|()| {
            n = (n ^ (n >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(seed);
            n
        })
    })
}

/// Holds `put` in the registers, then stores them in `got`.
///
/// # Safety
/// The CPU has AVX, and the kernel has enabled it.
#[target_feature(enable = "avx")]
unsafe fn hold(put: &Registers, got: &mut Registers) {
    // SAFETY: reads 512 bytes of `put`, writes as many to `got`, and changes what it says.
    unsafe {
        asm!(
            "vmovdqu ymm0, [{put}]",
            "vmovdqu ymm1, [{put} + 32]",
            "vmovdqu ymm2, [{put} + 64]",
            "vmovdqu ymm3, [{put} + 96]",
            "vmovdqu ymm4, [{put} + 128]",
            "vmovdqu ymm5, [{put} + 160]",
            "vmovdqu ymm6, [{put} + 192]",
            "vmovdqu ymm7, [{put} + 224]",
            "vmovdqu ymm8, [{put} + 256]",
            "vmovdqu ymm9, [{put} + 288]",
            "vmovdqu ymm10, [{put} + 320]",
            "vmovdqu ymm11, [{put} + 352]",
            "vmovdqu ymm12, [{put} + 384]",
            "vmovdqu ymm13, [{put} + 416]",
            "vmovdqu ymm14, [{put} + 448]",
            "vmovdqu ymm15, [{put} + 480]",
            "2:",
            "dec {steps}",
            "jnz 2b",
            "vmovdqu [{got}], ymm0",
            "vmovdqu [{got} + 32], ymm1",
            "vmovdqu [{got} + 64], ymm2",
            "vmovdqu [{got} + 96], ymm3",
            "vmovdqu [{got} + 128], ymm4",
            "vmovdqu [{got} + 160], ymm5",
            "vmovdqu [{got} + 192], ymm6",
            "vmovdqu [{got} + 224], ymm7",
            "vmovdqu [{got} + 256], ymm8",
            "vmovdqu [{got} + 288], ymm9",
            "vmovdqu [{got} + 320], ymm10",
            "vmovdqu [{got} + 352], ymm11",
            "vmovdqu [{got} + 384], ymm12",
            "vmovdqu [{got} + 416], ymm13",
            "vmovdqu [{got} + 448], ymm14",
            "vmovdqu [{got} + 480], ymm15",
            put = in(reg) put.as_ptr(),
            got = in(reg) got.as_mut_ptr(),
            steps = inout(reg) STEPS => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_comes_back() {
        let mut got = values(0);
        if std::arch::is_x86_feature_detected!("avx") {
            // SAFETY: as it says.
            unsafe { hold(&values(7), &mut got) };
            assert_eq!(got, values(7));
        }
        assert_ne!(values(7), values(8));
    }
}
