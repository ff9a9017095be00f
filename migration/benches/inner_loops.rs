//! The loops that a migration spends its time in, per GiB of guest RAM: `cargo bench --package
//! wherry-migration`.
//!
//! `memcpy` is the machine's own speed, to compare with: the figures of one run only.

use std::hint::black_box;

use divan::Bencher;
use divan::counter::BytesCount;
use wherry_migration::bitmap::Bitmap;
use wherry_migration::round::{Plan, Round};
use wherry_migration::units::{PAGE_SIZE, is_zero};
use wherry_migration::wire::Sum;
use wherry_migration::wire::pages::{
    MAX_CONTENT, MAX_RUNS, Run, encode_runs, pack_lz4, packed_room, parse, parse_lz4,
};

/// Pages of 1 GiB.
const NR_PAGES: u64 = (1 << 30) / PAGE_SIZE as u64;
/// Pages of the blocks that Linux hints: 4 MiB.
const BLOCK: u64 = 1024;

fn main() {
    divan::main();
}

/// Every third page: neither empty nor full words.
fn third() -> Bitmap {
    let mut map = Bitmap::new(NR_PAGES);
    (0..NR_PAGES).step_by(3).for_each(|page| map.set(page));
    map
}

fn round() -> Round {
    Round::new(1, NR_PAGES, &Plan::of(Bitmap::full(NR_PAGES)))
}

fn bytes(nr_pages: u64) -> BytesCount {
    BytesCount::new(nr_pages * PAGE_SIZE as u64)
}

/// A harvest, joined to what is dirty already, and counted.
#[divan::bench]
fn harvest_per_gib(bencher: Bencher<'_, '_>) {
    let (found, mut dirty) = (third(), Bitmap::new(NR_PAGES));
    bencher.counter(bytes(NR_PAGES)).bench_local(|| {
        dirty.or(black_box(&found));
        dirty.count()
    });
}

/// The sender takes every word of a full round.
#[divan::bench]
fn claim_per_gib(bencher: Bencher<'_, '_>) {
    bencher.counter(bytes(NR_PAGES)).with_inputs(round).bench_local_refs(|round| {
        (0..round.nr_words()).map(|word| u64::from(round.claim(word).count_ones())).sum::<u64>()
    });
}

/// All of it hinted in Linux's blocks.
#[divan::bench]
fn hints_per_gib(bencher: Bencher<'_, '_>) {
    bencher.counter(bytes(NR_PAGES)).with_inputs(round).bench_local_refs(|round| {
        for block in 0..NR_PAGES / BLOCK {
            for word in block * BLOCK / 64..(block + 1) * BLOCK / 64 {
                black_box(round.clear_hinted(word as usize, u64::MAX));
            }
        }
        round.hinted()
    });
}

/// The runs of a harvest.
#[divan::bench]
fn runs_per_gib(bencher: Bencher<'_, '_>) {
    let map = third();
    bencher
        .counter(bytes(NR_PAGES))
        .bench_local(|| black_box(&map).runs().map(|(_, nr)| nr).sum::<u64>());
}

/// Looking for content in a chunk of zero pages: the whole of each has to be read.
#[divan::bench]
fn zero_pages(bencher: Bencher<'_, '_>) {
    let chunk = vec![0; MAX_CONTENT];
    bencher
        .counter(BytesCount::new(MAX_CONTENT))
        .bench_local(|| black_box(&chunk).chunks(PAGE_SIZE).filter(|page| is_zero(page)).count());
}

/// The checksums over a chunk's content.
#[divan::bench(args = [Sum::Xxh64, Sum::Crc32])]
fn frame_checksum(bencher: Bencher<'_, '_>, sum: Sum) {
    let chunk = vec![0xa5; MAX_CONTENT];
    bencher.counter(BytesCount::new(MAX_CONTENT)).bench_local(|| sum.over(&[black_box(&chunk)]));
}

fn most_runs() -> Vec<Run> {
    (0..MAX_RUNS as u64).map(|n| Run { first: n * 2, nr: 1, zero: true }).collect()
}

/// The longest run table.
#[divan::bench]
fn encode_longest_table(bencher: Bencher<'_, '_>) {
    let (runs, mut out) = (most_runs(), Vec::new());
    bencher.counter(divan::counter::ItemsCount::new(MAX_RUNS)).bench_local(|| {
        out.clear();
        encode_runs(black_box(&runs), &mut out);
        out.len()
    });
}

/// And the same, read and checked by a destination.
#[divan::bench]
fn check_longest_table(bencher: Bencher<'_, '_>) {
    let (mut table, mut runs) = (Vec::new(), Vec::new());
    encode_runs(&most_runs(), &mut table);
    assert!(parse(&table, NR_PAGES, &mut runs).is_ok(), "a table of our own is refused");
    bencher
        .counter(divan::counter::ItemsCount::new(MAX_RUNS))
        .bench_local(|| parse(black_box(&table), NR_PAGES, &mut runs).map_or(0, <[u8]>::len));
}

/// A chunk of something that guests have in memory: this program.
fn program() -> Vec<u8> {
    let mut content = std::env::current_exe().and_then(std::fs::read).unwrap_or_default();
    content.resize(MAX_CONTENT, 0);
    content
}

/// Compressing a chunk's content.
#[divan::bench]
fn lz4_pack(bencher: Bencher<'_, '_>) {
    let (content, mut room) = (program(), vec![0; packed_room()]);
    bencher
        .counter(BytesCount::new(MAX_CONTENT))
        .bench_local(|| pack_lz4(black_box(&content), &mut room).map(<[u8]>::len));
}

/// And checking and unpacking it at the destination.
#[divan::bench]
fn lz4_unpack(bencher: Bencher<'_, '_>) {
    let (mut frame, mut runs, mut room) = (Vec::new(), Vec::new(), Vec::new());
    encode_runs(&[Run { first: 0, nr: (MAX_CONTENT / PAGE_SIZE) as u32, zero: false }], &mut frame);
    frame.extend(pack_lz4(&program(), &mut vec![0; packed_room()]).expect("a program compresses"));
    bencher.counter(BytesCount::new(MAX_CONTENT)).bench_local(|| {
        parse_lz4(black_box(&frame), NR_PAGES, &mut runs, &mut room).map_or(0, <[u8]>::len)
    });
}

/// The machine's own speed.
#[divan::bench]
fn memcpy(bencher: Bencher<'_, '_>) {
    let (from, mut to) = (vec![1u8; MAX_CONTENT], vec![0u8; MAX_CONTENT]);
    bencher
        .counter(BytesCount::new(MAX_CONTENT))
        .bench_local(|| to.copy_from_slice(black_box(&from)));
}
