//! What is found in images, whole ones and hostile ones, without a process in between.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;

use common::*;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use wherry_rootfs::{Limits, Listing, Refusal, Why, extract};

struct Found {
    listing: Listing,
    kernel: Vec<u8>,
    initrd: Vec<u8>,
}

fn read_with(image: &[u8], limits: &Limits) -> Result<Found, Refusal> {
    let out = tempfile::tempfile().unwrap();
    let listing = extract(file(image), &out, limits)?;
    let bytes = |out: &File, at: u64, len: u64| {
        let mut bytes = vec![0; len as usize];
        out.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    let kernel = bytes(&out, 4096, listing.kernel.len);
    let at = 4096 + listing.kernel.len.next_multiple_of(4096);
    let initrd = listing.initrd.as_ref().map_or(Vec::new(), |found| bytes(&out, at, found.len));
    Ok(Found { listing, kernel, initrd })
}

fn read(image: &[u8]) -> Result<Found, Refusal> {
    read_with(image, &Limits::default())
}

fn refused(image: &[u8]) -> (Why, String) {
    match read(image) {
        Ok(found) => panic!("{:?}", found.listing),
        Err(refusal) => (refusal.why, refusal.to_string()),
    }
}

/// Asserts that `image` is refused for this reason, and that the text says all of these.
fn assert_refused(image: &[u8], why: Why, words: &[&str]) {
    let (found, text) = refused(image);
    assert_eq!(found, why, "{text}");
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn a_disk_without_partitions_boots_what_debians_links_name() {
    if !mke2fs_is_here() {
        return;
    }
    for kind in ["ext4", "ext3", "ext2"] {
        for block in ["1024", "4096"] {
            let image = Tree::debian().ext4_with(&["-t", kind, "-b", block], "8M");
            let found = read(&image).unwrap();
            assert!(found.kernel == kernel() && found.initrd == initrd(), "{kind} {block}");
            let listing = found.listing;
            assert_eq!(listing.kernel.path, "/boot/vmlinuz-6.1.0-40-cloud-amd64");
            let initrd = listing.initrd.as_ref().unwrap();
            assert_eq!(initrd.path, "/boot/initrd.img-6.1.0-40-cloud-amd64");
            assert_eq!(listing.cmdline(), format!("root=UUID={UUID} ro console=ttyS0"));
            assert_eq!(listing.partition, None);
        }
    }
}

#[test]
fn a_partition_of_the_roots_type_goes_before_other_linux_file_systems() {
    if !mke2fs_is_here() {
        return;
    }
    let old = Tree::new().file("boot/vmlinuz-5", b"old").ext4();
    let root = Tree::debian().ext4();
    let home = Tree::new().file("someone/vmlinuz", b"no").ext4();
    let esp = vec![0; 4096];
    let found = read(&gpt(&[(ESP, &esp), (LINUX, &old), (ROOT, &root)])).unwrap();
    assert!(found.kernel == kernel() && found.initrd == initrd());
    assert_eq!(found.listing.partition.unwrap().number, 3);
    let found = read(&gpt(&[(LINUX, &home), (LINUX, &root), (ESP, &esp)])).unwrap();
    assert!(found.kernel == kernel());
    assert_eq!(found.listing.partition.unwrap().number, 2);
}

#[test]
fn without_an_initrd_the_root_is_named_so_that_a_kernel_finds_it() {
    if !mke2fs_is_here() {
        return;
    }
    let root = Tree::new().file("boot/vmlinuz-6", &kernel()).ext4();
    let found = read(&root).unwrap();
    assert!(found.listing.initrd.is_none() && found.kernel == kernel());
    assert_eq!(found.listing.cmdline(), "root=/dev/vda ro console=ttyS0");
    let found = read(&gpt(&[(ROOT, &root)])).unwrap();
    assert_eq!(found.listing.root(), format!("root=PARTUUID={FIRST}"));
}

#[test]
fn links_are_followed_as_the_guest_would() {
    if !mke2fs_is_here() {
        return;
    }
    let links = [
        ("/boot/vmlinuz-6.1.0-40-cloud-amd64", "absolute"),
        ("./boot/../boot/vmlinuz-6.1.0-40-cloud-amd64", "with dots"),
        ("../../boot/vmlinuz-6.1.0-40-cloud-amd64", "above the root"),
        ("here/vmlinuz-6.1.0-40-cloud-amd64", "through a folder's link"),
        ("hop", "over another link"),
    ];
    for (target, what) in links {
        let tree = Tree::debian()
            .link("here", "boot")
            .link("hop", "here/vmlinuz-6.1.0-40-cloud-amd64")
            .link("vmlinuz", target);
        let found = read(&tree.ext4()).unwrap();
        assert!(found.kernel == kernel(), "{what}");
        assert_eq!(found.listing.kernel.path, "/boot/vmlinuz-6.1.0-40-cloud-amd64", "{what}");
        assert!(found.initrd == initrd(), "{what}");
    }
}

#[test]
fn without_links_the_newest_kernel_boots_with_its_own_initrd() {
    if !mke2fs_is_here() {
        return;
    }
    let tree = || {
        Tree::new()
            .file("boot/vmlinuz-6.1.0-9-amd64", b"older")
            .file("boot/initrd.img-6.1.0-9-amd64", b"older")
            .file("boot/vmlinuz-6.1.0-10-amd64", &kernel())
            .file("boot/initrd.img-6.1.0-10-amd64", &initrd())
            .file("boot/vmlinuz-6.1.0-11-amd64.dpkg-new", b"half")
            .folder("boot/vmlinuz-7")
            .link("boot/vmlinuz-8", "gone")
    };
    let dangling = tree().link("vmlinuz", "boot/vmlinuz-6.0").link("initrd.img", "nowhere");
    let loops = tree().link("vmlinuz", "vmlinuz").link("boot/vmlinuz", "../vmlinuz");
    for tree in [tree(), dangling, loops] {
        let found = read(&tree.ext4()).unwrap();
        assert_eq!(found.listing.kernel.path, "/boot/vmlinuz-6.1.0-10-amd64");
        assert!(found.kernel == kernel() && found.initrd == initrd());
    }
    // As Ubuntu, Fedora and openSUSE have it.
    for initrd_name in ["initrd.img-6", "initramfs-6.img", "initrd-6"] {
        let tree = Tree::new()
            .file("boot/vmlinuz-6", &kernel())
            .file(&format!("boot/{initrd_name}"), &initrd())
            .link("boot/vmlinuz", "vmlinuz-6");
        assert!(read(&tree.ext4()).unwrap().initrd == initrd(), "{initrd_name}");
    }
}

#[test]
fn what_is_missing_is_named() {
    if !mke2fs_is_here() {
        return;
    }
    let no_kernel = |tree: Tree, words: &[&str]| assert_refused(&tree.ext4(), Why::NoKernel, words);
    no_kernel(Tree::new(), &["no kernel", "/vmlinuz"]);
    no_kernel(Tree::new().folder("vmlinuz"), &["/vmlinuz is not a file"]);
    no_kernel(Tree::new().link("vmlinuz", "boot/gone"), &["/vmlinuz is a link that leads nowhere"]);
    let ring = Tree::new().link("vmlinuz", "boot/vmlinuz-1").link("boot/vmlinuz-1", "../vmlinuz");
    no_kernel(ring, &["too many levels of symbolic links"]);
    no_kernel(Tree::new().link("boot", "boot"), &["no kernel"]);

    // Better no boot than one without the initrd that was meant.
    let image = Tree::debian().without("boot/initrd.img-6.1.0-40-cloud-amd64").ext4();
    assert_refused(&image, Why::NoInitrd, &["/initrd.img is a link", "6.1.0-40"]);
    let image = Tree::debian().file("boot/vmlinuz-6.1.0-40-cloud-amd64", b"").ext4();
    assert_refused(&image, Why::Damaged, &["/boot/vmlinuz-6.1.0-40-cloud-amd64 is empty"]);
    let image = Tree::debian().ext4_with(&["-t", "ext4", "-U", "clear"], "8M");
    assert_refused(&image, Why::NoUuid, &["tune2fs -U random"]);

    let esp = vec![0; 4096];
    assert_refused(&gpt(&[(ESP, &esp)]), Why::NoRoot, &["Linux root (x86-64)"]);
    assert_refused(&gpt(&[]), Why::NoRoot, &[]);
    let empty = Tree::new().ext4();
    assert_refused(&gpt(&[(ESP, &esp), (LINUX, &empty)]), Why::NoKernel, &["partition 2: it has"]);
    assert_refused(&vec![0; 1 << 20], Why::NoRoot, &["no partition table"]);
    for len in [0, 1, 511, 1025] {
        assert_refused(&vec![0; len], Why::NoRoot, &[]);
    }
}

#[test]
fn what_is_too_large_is_refused_before_it_is_read() {
    if !mke2fs_is_here() {
        return;
    }
    let image = Tree::debian().ext4();
    let small = |kernel, initrd| {
        let limits = Limits { kernel, initrd, ..Limits::default() };
        let refusal = read_with(&image, &limits).err();
        refusal.map(|refusal| (refusal.why, refusal.to_string()))
    };
    assert_eq!(small(300_007, 700_001), None);
    let (why, text) = small(300_006, 700_001).unwrap();
    assert!(why == Why::TooLarge && text.contains("300007 bytes; 300006 is the most"), "{text}");
    let (why, text) = small(300_007, 700_000).unwrap();
    assert!(why == Why::TooLarge && text.contains("/boot/initrd.img-"), "{text}");
}

#[test]
fn other_formats_are_named_on_a_disk_and_in_a_partition() {
    for (at, magic, name) in [
        (0x1_0040, &b"_BHRfS_M"[..], "btrfs"),
        (512, b"LABELONE", "LVM"),
        (0, b"LUKS\xBA\xBE", "LUKS"),
        (0, b"XFSB", "xfs"),
    ] {
        let mut content = vec![0; 1 << 20];
        content[at..at + magic.len()].copy_from_slice(magic);
        assert_refused(&content, Why::OtherFormat, &[name, "only ext4"]);
        for kind in [ROOT, LINUX] {
            let disk = gpt(&[(kind, &content)]);
            assert_refused(&disk, Why::OtherFormat, &["partition 1", name]);
        }
        let disk = gpt(&[(ESP, &content)]);
        assert_refused(&disk, Why::NoRoot, &["partition 1 holds", name]);
        if mke2fs_is_here() {
            // What a /boot of its own lacks is in the other one.
            let boot = Tree::new().file("vmlinuz-6", b"kernel").ext4();
            let disk = gpt(&[(LINUX, &boot), (LINUX, &content)]);
            assert_refused(&disk, Why::OtherFormat, &["partition 2", name]);
        }
    }
    let mut qcow2 = vec![0; 65536];
    qcow2[..4].copy_from_slice(b"QFI\xFB");
    assert_refused(&qcow2, Why::OtherFormat, &["qcow2", "qemu-img convert -O raw"]);
}

#[test]
fn a_damaged_table_is_replaced_by_its_copy() {
    if !mke2fs_is_here() {
        return;
    }
    let disk = gpt(&[(ROOT, &Tree::debian().ext4())]);
    let last = disk.len() - 512;
    // Each field of the header, and the entries.
    for at in [12, 16, 24, 72, 80, 84, 88, 512, 1024] {
        let mut first = disk.clone();
        first[512 + at] ^= 0x41;
        assert!(read(&first).unwrap().kernel == kernel(), "{at}");
        first[last + 20] ^= 1;
        assert_refused(&first, Why::Table, &["both of its copies"]);
    }
    let mut mbr = vec![0; 1 << 20];
    mbr[446 + 4] = 0x83;
    mbr[446 + 12] = 1;
    mbr[510..512].copy_from_slice(&[0x55, 0xAA]);
    assert_refused(&mbr, Why::Table, &["MBR"]);
}

#[test]
fn a_truncated_image_is_named_wherever_it_ends() {
    if !mke2fs_is_here() {
        return;
    }
    let image = Tree::debian().ext4();
    for len in [1200, 2047, 2048, 4096, 100_000, image.len() / 2, image.len() - 1] {
        assert_refused(&image[..len], Why::Truncated, &["truncated"]);
    }
    let disk = gpt(&[(ROOT, &image)]);
    for len in [2 << 20, disk.len() / 2] {
        assert_refused(&disk[..len], Why::Truncated, &["partition 1", "behind the image's end"]);
    }
}

#[test]
fn a_journal_is_replayed() {
    if !mke2fs_is_here() {
        return;
    }
    // As a guest leaves it that was killed: a block of the kernel is new in the journal alone.
    let image = Tree::debian().ext4_with(&["-t", "ext4", "-b", "4096"], "16M");
    let (image, block) = with_journal(&image, "/boot/vmlinuz-6.1.0-40-cloud-amd64", 3);
    let mut expected = kernel();
    expected[3 * 4096..][..4096].copy_from_slice(&block);
    assert!(read(&image).unwrap().kernel == expected);
}

/// No panic, and of what is found all keeps to the limits.
fn judge(image: &[u8]) {
    let limits = Limits { kernel: 1 << 20, initrd: 1 << 20, ..Limits::default() };
    match read_with(image, &limits) {
        Ok(found) => {
            assert_eq!(found.kernel.len() as u64, found.listing.kernel.len);
            assert!(found.kernel.len() <= 1 << 20 && found.initrd.len() <= 1 << 20);
        }
        Err(refusal) => assert!(!refusal.detail.is_empty()),
    }
}

fn runner(cases: u32) -> TestRunner {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn flipped_bytes_are_an_error_or_make_no_difference() {
    if !mke2fs_is_here() {
        return;
    }
    // Checksums hide most of the parser from what is flipped; without them it sees all of it.
    for features in ["metadata_csum", "^metadata_csum,^64bit", "^extents,^64bit,^metadata_csum"] {
        let options = ["-t", "ext4", "-b", "1024", "-O", features];
        let image = Tree::debian().ext4_with(&options, "4M");
        let used: Vec<usize> = (0..image.len()).filter(|at| image[*at] != 0).collect();
        let structure: Vec<usize> = used.iter().copied().filter(|at| *at < 400 << 10).collect();
        let flips = prop::collection::vec((any::<prop::sample::Index>(), 1u8..=255), 1..12);
        let judged = runner(200).run(&flips, |flips| {
            let mut image = image.clone();
            for (index, mask) in flips {
                image[*index.get(&structure)] ^= mask;
            }
            judge(&image);
            Ok(())
        });
        judged.unwrap();
    }
}

#[test]
fn fields_of_the_superblock_may_be_anything() {
    if !mke2fs_is_here() {
        return;
    }
    let options = ["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"];
    let image = Tree::debian().ext4_with(&options, "4M");
    let fields = (0usize..256, prop_oneof![Just(0), Just(1), Just(u32::MAX), any::<u32>()]);
    let judged = runner(600).run(&prop::collection::vec(fields, 1..3), |fields| {
        let mut image = image.clone();
        for (field, value) in fields {
            image[1024 + field * 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
        // A reader in a process of its own may run out of memory here; this one may not.
        let groups = u32::from_le_bytes(image[1024 + 0x20..][..4].try_into().unwrap());
        prop_assume!(groups > 64);
        judge(&image);
        Ok(())
    });
    judged.unwrap();
}
