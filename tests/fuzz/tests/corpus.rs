//! Every target over its seeds, its kept inputs, and random changes of them, as ordinary tests.

use std::fs;
use std::path::Path;

use wherry_fuzz_targets::{Rng, TARGETS, Target, moved, seeds};

/// Kept inputs stay few and small.
const MOST_FILES: usize = 50;
const MOST_BYTES: u64 = 200 << 10;

fn inputs(target: &Target) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target.name);
    let mut files: Vec<_> = fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut all: Vec<_> = files.iter().map(|path| fs::read(path).unwrap()).collect();
    let bytes: usize = all.iter().map(Vec::len).sum();
    assert!(
        files.len() <= MOST_FILES && bytes as u64 <= MOST_BYTES,
        "{}: {bytes} bytes",
        target.name
    );
    all.extend(seeds::of(target.name).into_iter().map(|(_, data)| data));
    all
}

/// The input is printed if a target panics on it.
struct Shown<'a>(&'a str, &'a [u8]);
impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.1.iter().take(4096).map(|b| format!("{b:02x}")).collect();
            eprintln!("target {}, {} bytes: {hex}", self.0, self.1.len());
        }
    }
}

fn run(target: &Target, data: &[u8]) {
    let _shown = Shown(target.name, data);
    (target.run)(data);
}

fn corpus_and_changes(name: &str) {
    let target = TARGETS.iter().find(|t| t.name == name).unwrap();
    let inputs = inputs(target);
    inputs.iter().for_each(|data| run(target, data));
    let mut rng = Rng::new(0x5eed);
    for case in 0..target.cases {
        let (base, other) = (&inputs[rng.below(inputs.len())], &inputs[rng.below(inputs.len())]);
        let data = match case % 8 {
            0 => {
                let nr = rng.below(400);
                rng.bytes(nr)
            }
            _ => rng.mutate(base, other),
        };
        run(target, &data);
    }
}

macro_rules! tests {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            corpus_and_changes(stringify!($name));
        }
    )*};
}
tests!(balloon blk net vsock rng stream serial power wire);
tests!(machine trace kernel control config rootfs);

/// Both ends in one test, which counts the migrations.
#[test]
fn destination_and_source() {
    for name in ["destination", "source"] {
        let target = TARGETS.iter().find(|t| t.name == name).unwrap();
        seeds::of(name).iter().for_each(|(_, data)| run(target, data));
    }
    let (left, arrived) = moved();
    assert!(
        left >= 4 && arrived >= 5,
        "seeds of {left} sources and {arrived} destinations reach the end"
    );
    corpus_and_changes("destination");
    corpus_and_changes("source");
}

/// A seed that the product refuses would not lead anywhere.
#[test]
fn seeds_are_what_the_product_reads() {
    use wherry_replay::Trace;
    use wherry_vmm::machine::{Description, MachineState};
    let seed = |target, name: &str| {
        let found = seeds::of(target).into_iter().find(|(n, _)| n.ends_with(name));
        found.unwrap_or_else(|| panic!("no seed {name}")).1
    };
    for whole in ["whole", "cut"] {
        Trace::read(&seed("trace", whole)[..]).unwrap();
    }
    Description::decode(&seed("machine", "description")[1..]).unwrap();
    MachineState::decode(&seed("machine", "state")[1..]).unwrap();
    for name in ["lists", "tables", "inline"] {
        wherry_cli::try_file(&seed("config", name)).unwrap();
    }
    // Those that are kept: a machine may lack what makes them.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/rootfs");
    for name in ["ext2", "ext4", "sums", "table", "journal"] {
        let image = fs::read(folder.join(format!("seed-{name}"))).unwrap();
        assert!(wherry_fuzz_targets::boots(&image), "{name}");
    }
}
