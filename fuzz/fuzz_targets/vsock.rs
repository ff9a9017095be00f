#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| wherry_fuzz_targets::vsock(data));
