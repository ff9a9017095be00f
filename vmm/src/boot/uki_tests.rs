//! Unified kernel images: what is found in whole ones, and what is said of damaged ones.

use std::io::Cursor;

use proptest::prelude::*;

use super::*;

/// An image with these sections (name, content), each padded to 512 bytes in the file.
pub(crate) fn image(sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut image = vec![0; 0x400];
    image[..2].copy_from_slice(b"MZ");
    image[0x3C] = 0x80;
    image[0x80..0x84].copy_from_slice(b"PE\0\0");
    image[0x84..0x86].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
    image[0x86] = sections.len() as u8;
    image[0x94] = 0x10;
    for (i, (name, content)) in sections.iter().enumerate() {
        let (start, size) = (image.len() as u32, content.len() as u32);
        image.extend_from_slice(content);
        image.resize(image.len().next_multiple_of(512), 0);
        let stored = image.len() as u32 - start;
        let header = &mut image[0x80 + 24 + 0x10 + i * 40..][..40];
        header[..name.len()].copy_from_slice(name.as_bytes());
        for (at, value) in [(8, size), (16, stored), (20, start)] {
            header[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    image
}

fn look(bytes: &[u8]) -> anyhow::Result<Option<Uki>> {
    parse(&mut Cursor::new(bytes), bytes.len() as u64)
}

const WHOLE: [(&str, &[u8]); 4] = [
    (".text", b"a stub"),
    (".cmdline", b" root=/dev/vda1 ro\nquiet \n\0"),
    (".initrd", &[7; 1000]),
    (".linux", &[9; 700]),
];

#[test]
fn sections_are_found_without_their_padding() {
    let bytes = image(&WHOLE);
    let found = look(&bytes).unwrap().unwrap();
    let part = |(start, len): Span| &bytes[start as usize..][..len as usize];
    assert_eq!(part(found.linux), [9; 700]);
    assert_eq!(part(found.initrd.unwrap()), [7; 1000]);
    assert_eq!(found.cmdline, "root=/dev/vda1 ro quiet");
    let bare = look(&image(&[(".linux", b"x")])).unwrap().unwrap();
    assert_eq!((bare.initrd, bare.cmdline.as_str()), (None, ""));
    // The first profile's parts win over those of all, and other profiles' count for nothing.
    let first: [(&str, &[u8]); 2] = [(".profile", b"ID=a"), (".cmdline", b"first")];
    let second: [(&str, &[u8]); 2] = [(".profile", b"ID=b"), (".cmdline", b"second")];
    let all = [&WHOLE[..], &first, &second].concat();
    assert_eq!(look(&image(&all)).unwrap().unwrap().cmdline, "first");
}

#[test]
fn other_files_are_none() {
    let plain = image(&[(".text", b"x"), (".data", b"y")]);
    for bytes in [&b""[..], b"M", b"MZ", b"\x7fELF", &[0; 100], &plain, &plain[..0x90]] {
        assert_eq!(look(bytes).unwrap(), None);
    }
}

#[test]
fn damage_is_named() {
    let whole = image(&WHOLE);
    let section = |nr: usize| 0x80 + 24 + 0x10 + nr * 40;
    let refused = |at: usize, bytes: &[u8], what: &str| {
        let mut image = whole.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        let error = format!("{:#}", look(&image).unwrap_err());
        assert!(error.contains(what), "{error}");
    };
    refused(0x84, &[0x64, 0xAA], "another machine");
    refused(0x86, &[97], "too many sections");
    refused(section(3) + 20, &[0xFF; 4], "is truncated: a section");
    refused(section(3) + 8, &[0; 4], "wrong size");
    refused(section(2) + 8, &[0xFF; 4], "wrong size");
    refused(section(1) + 8, &[0; 4], "wrong size");
    refused(section(0), b".linux\0\0", "there twice");
    let long = vec![b'x'; 4097];
    for (text, what) in [(&long[..], "too long"), (b"\xFF", "no text"), (b"a\0b", "zero byte")] {
        let error = look(&image(&[(".linux", b"x"), (".cmdline", text)])).unwrap_err();
        assert!(format!("{error:#}").contains(what), "{error:#}");
    }
    for len in 0..whole.len() {
        if let Ok(Some(found)) = look(&whole[..len]) {
            assert!(found.linux.0 + found.linux.1 <= len as u64);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn any_headers_are_an_error_or_lie_in_the_file(
        changes in prop::collection::vec((0usize..0x180, any::<u8>()), 0..12),
        len in 0usize..4096,
    ) {
        let mut bytes = image(&WHOLE);
        changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
        bytes.truncate(len.max(0x100));
        if let Ok(Some(found)) = look(&bytes) {
            for (start, size) in [Some(found.linux), found.initrd].into_iter().flatten() {
                prop_assert!(size > 0 && start + size <= bytes.len() as u64);
            }
            prop_assert!(!found.cmdline.contains(['\n', '\0']));
        }
    }
}
