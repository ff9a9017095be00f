#![no_main]
#![feature(alloc_error_hook)]

// The parser of ext4 believes a link's length. Where it is confined, its process ends with that;
// here it is a panic, so that the fuzzer goes on.
fn begin() {
    wherry_fuzz_targets::limit_memory();
    std::alloc::set_alloc_error_hook(|layout| {
        panic!("{}{} bytes", wherry_fuzz_targets::NO_MEMORY, layout.size())
    });
}

libfuzzer_sys::fuzz_target!(init: begin(), |data: &[u8]| wherry_fuzz_targets::rootfs(data));
