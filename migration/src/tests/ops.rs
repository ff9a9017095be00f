//! What a model guest does, and how it is moved.

use std::time::Duration;

use proptest::prelude::*;

use crate::config::{HintMode, HintPolicy, OnTimeout, SourceConfig};

/// One thing that a guest (or its device) does.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    /// Uses a page and writes something new.
    Write(u64),
    /// Uses a page and fills it with what does not compress.
    WriteNoise(u64),
    /// Uses a page as a zero page.
    WriteZero(u64),
    /// The VMM writes into a page in use (device DMA).
    VmmWrite(u64),
    /// Frees pages.
    Free(u64, u64),
    /// The driver takes the free pages of a range and queues hints for them.
    Hint(u64, u64),
    /// The driver gives held pages back to the guest (memory pressure), whatever hints are queued.
    Shrink(u64, u64),
    /// The device processes the oldest queued hint.
    Deliver,
    /// A hint for pages in use.
    Lie(u64, u64),
    /// A hint reaches a sink of an earlier epoch, against the rules.
    Stale(u64, u64),
    /// Free pages go into the balloon.
    Inflate(u64, u64),
    /// And come out.
    Deflate(u64, u64),
    /// Free page reporting gives free memory back to the host.
    Report(u64, u64),
}

pub(super) fn ops(pages: u64) -> impl Strategy<Value = Op> {
    let nr = prop_oneof![1u64..8, Just(64), Just(128), Just(200)];
    let range = (0..pages, nr).prop_map(|(f, n)| (if n >= 64 { f / 64 * 64 } else { f }, n));
    prop_oneof![
        4 => (0..pages).prop_map(Op::Write),
        2 => (0..pages).prop_map(Op::WriteNoise),
        2 => (0..pages).prop_map(Op::WriteZero),
        2 => (0..pages).prop_map(Op::VmmWrite),
        3 => range.clone().prop_map(|(f, n)| Op::Free(f, n)),
        6 => range.clone().prop_map(|(f, n)| Op::Hint(f, n)),
        2 => range.clone().prop_map(|(f, n)| Op::Shrink(f, n)),
        8 => Just(Op::Deliver),
        1 => range.clone().prop_map(|(f, n)| Op::Lie(f, n)),
        2 => range.clone().prop_map(|(f, n)| Op::Stale(f, n)),
        1 => range.clone().prop_map(|(f, n)| Op::Inflate(f, n)),
        1 => range.clone().prop_map(|(f, n)| Op::Deflate(f, n)),
        1 => range.prop_map(|(f, n)| Op::Report(f, n)),
    ]
}

/// The guest hints these words, one after the other.
pub(super) fn hinting(nr_words: u64) -> Vec<Op> {
    let mut script = vec![];
    for word in 0..nr_words {
        script.push(Op::Hint(word * 64, 64));
        script.push(Op::Deliver);
    }
    script
}

pub(super) fn config(mode: HintMode) -> SourceConfig {
    SourceConfig {
        hints: HintPolicy::On,
        hint_mode: mode,
        // Three rounds, then switch over whatever is left: the script decides what is dirty when.
        downtime_limit: Duration::ZERO,
        max_rounds: 3,
        on_timeout: OnTimeout::Force,
        first_hint_wait: Duration::from_millis(1),
        slice: Duration::from_micros(100),
        hint_time: Duration::from_micros(200),
        hint_rest: Duration::from_micros(100),
        stall_timeout: Duration::from_secs(10),
        ..SourceConfig::default()
    }
}
