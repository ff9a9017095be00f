//! The tables are read back as a kernel reads them, by a parser that shares nothing with what
//! writes them.

use proptest::prelude::*;
use wherry_codec::golden;

use super::super::layout::{ACPI_END, HIGH_MEMORY_START, MIB, RESET_VECTOR};
use super::super::params::memory_map;
use super::*;

/// A structure: type, handle, formatted part without its header, strings.
type Structure = (u8, u16, Vec<u8>, Vec<String>);

/// All structures of the lowest MiB, found and checked as drivers/firmware/dmi_scan.c does.
fn scan(low: &[u8]) -> Vec<Structure> {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b));
    let at = (0xF_0000..0x10_0000).step_by(16).find(|at| low[*at..].starts_with(b"_SM3_"));
    let entry = &low[at.expect("an entry point")..];
    let entry = &entry[..usize::from(entry[6])];
    assert!((24..=32).contains(&entry.len()));
    assert_eq!(entry.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0, "checksum");
    assert_eq!(entry[7..9], [3, 3]);
    let (len, start) = (number(&entry[12..16]), number(&entry[16..24]));
    let mut table = &low[start..start + len];
    let mut all = Vec::new();
    loop {
        let (kind, formatted) = (table[0], usize::from(table[1]));
        let handle = number(&table[2..4]) as u16;
        let body = table[4..formatted].to_vec();
        table = &table[formatted..];
        let end = table.windows(2).position(|two| two == [0, 0]).expect("an end of the strings");
        let strings = String::from_utf8(table[..end].to_vec()).unwrap();
        let strings = strings.split('\0').filter(|s| !s.is_empty()).map(Into::into).collect();
        all.push((kind, handle, body, strings));
        table = &table[end + 2..];
        if kind == 127 {
            assert!(table.is_empty(), "nothing follows the end");
            return all;
        }
    }
}

/// As systemd reads them.
fn credentials(of: &[Structure]) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for (_, _, body, strings) in of.iter().filter(|(kind, ..)| *kind == 11) {
        assert_eq!(body, &[strings.len() as u8], "systemd wants a length of 5");
        for string in strings {
            let (is_base64, rest) = match string.strip_prefix("io.systemd.credential:") {
                Some(rest) => (false, rest),
                None => (true, string.strip_prefix("io.systemd.credential.binary:").unwrap()),
            };
            let (name, value) = rest.split_once('=').unwrap();
            all.push((name.into(), if is_base64 { unbase64(value) } else { value.into() }));
        }
    }
    all
}

fn unbase64(text: &str) -> Vec<u8> {
    assert_eq!(text.len() % 4, 0);
    let mut bits = String::new();
    for c in text.trim_end_matches('=').chars() {
        let value = match c {
            'A'..='Z' => c as u32 - 'A' as u32,
            'a'..='z' => c as u32 - 'a' as u32 + 26,
            '0'..='9' => c as u32 - '0' as u32 + 52,
            '+' => 62,
            '/' => 63,
            _ => panic!("{c}"),
        };
        bits += &format!("{value:06b}");
    }
    let whole = bits.as_bytes().chunks_exact(8);
    whole.map(|b| u8::from_str_radix(std::str::from_utf8(b).unwrap(), 2).unwrap()).collect()
}

fn firmware(credentials: &[(&str, &[u8])]) -> Firmware {
    let credentials = credentials.iter().map(|(n, v)| Credential::new(n, *v).unwrap()).collect();
    Firmware { uuid: std::array::from_fn(|nr| nr as u8 * 0x11), credentials }
}

/// The lowest MiB of a guest with these tables.
fn low(firmware: &Firmware) -> Vec<u8> {
    let mem = GuestMemory::from_ranges(&[(GuestAddress(0), MIB as usize)]).unwrap();
    write_tables(&mem, firmware).unwrap();
    let mut low = vec![0; MIB as usize];
    mem.read_slice(&mut low, GuestAddress(0)).unwrap();
    low
}

#[test]
fn a_guest_finds_its_machine_and_its_credentials() {
    let keys = b"ssh-ed25519 AAAA me\n";
    let given = [("ssh.authorized_keys.root", &keys[..]), ("system.hostname", b"web")];
    let all = scan(&low(&firmware(&given)));
    let kinds: Vec<_> = all.iter().map(|(kind, handle, ..)| (*kind, *handle)).collect();
    assert_eq!(kinds, [(0, 0), (1, 1), (11, 2), (127, 3)]);
    let (_, _, bios, strings) = &all[0];
    assert_eq!(strings, &["Wherry", "1", RELEASE_DATE]);
    assert_eq!((bios.len(), [bios[0], bios[1], bios[4]]), (0x1A - 4, [1, 2, 3]));
    assert_eq!(bios[0x13 - 4], 0x10, "what systemd-detect-virt looks at: a virtual machine");
    let (_, _, system, strings) = &all[1];
    assert_eq!(strings, &["Wherry", "Wherry VM", "1"]);
    assert_eq!((system.len(), &system[..4]), (0x1B - 4, &[1, 2, 3, 0][..]));
    let uuid = [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xAA, 0xBB];
    assert_eq!(system[4..16], uuid);
    let given = given.map(|(name, value)| (name.to_owned(), value.to_vec()));
    assert_eq!(credentials(&all), given);
    // Without credentials there is no structure for them: one with no strings has no end.
    let kinds = scan(&low(&Firmware::default())).into_iter().map(|(kind, ..)| kind);
    assert_eq!(kinds.collect::<Vec<_>>(), [0, 1, 127]);
}

#[test]
fn golden_bytes_of_small_tables() {
    let bytes = build(&firmware(&[("a", b"b"), ("c", b"\xff")])).unwrap();
    golden::check(env!("CARGO_MANIFEST_DIR"), "smbios.bin", &bytes);
}

#[test]
fn the_largest_tables_touch_nothing_else() {
    let value = vec![b'x'; (48 << 10) - "io.systemd.credential:a=\0".len()];
    let low = low(&firmware(&[("a", &value)]));
    assert_eq!(credentials(&scan(&low)), [("a".to_owned(), value)]);
    assert!(low[..ACPI_END as usize].iter().all(|b| *b == 0), "ACPI");
    assert!(low[SMBIOS_END as usize..].iter().all(|b| *b == 0), "the reset vector's page");
    assert!((SMBIOS_END..HIGH_MEMORY_START).contains(&RESET_VECTOR));
}

/// A kernel must not use the area as RAM before it has looked at it, nor give it away after.
#[test]
fn the_area_is_reserved_for_good() {
    let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    let map = memory_map(&mem);
    let of = |addr: u64| map.iter().find(|e| (e.addr..e.addr + e.size).contains(&addr));
    for addr in [SMBIOS_START, SMBIOS_END - 1] {
        assert_eq!(of(addr).map(|e| e.r#type), Some(2), "{addr:#x}");
    }
}

#[test]
fn what_no_guest_can_be_given_is_refused() {
    let refused = |firmware| build(&firmware).unwrap_err().to_string();
    let large = vec![b'x'; 48 << 10];
    assert!(refused(firmware(&[("a", &large)])).contains("49152 are the most"));
    assert!(refused(firmware(&[("a", b""), ("a", b"")])).contains("given twice"));
    let mem = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let error = write_tables(&mem, &Firmware::default()).unwrap_err();
    assert!(error.to_string().contains("into guest memory"), "{error}");
}

#[test]
fn a_machine_has_one_identity_on_its_host_and_another_elsewhere() {
    let web = uuid(b"a", "web");
    assert_eq!(web, uuid(b"a", "web"));
    for other in [uuid(b"b", "web"), uuid(b"a", "web2"), uuid(b"", "aweb"), uuid(b"aweb", "")] {
        assert_ne!(web, other);
    }
    assert_eq!((web[6] >> 4, web[8] >> 6), (8, 0b10), "version 8 of RFC 9562");
}

proptest! {
    #[test]
    fn every_value_arrives(values in prop::collection::vec(any::<Vec<u8>>(), 0..20)) {
        let names: Vec<String> = (0..values.len()).map(|nr| format!("name-{nr}")).collect();
        let given: Vec<_> =
            names.iter().zip(&values).map(|(n, v)| (n.as_str(), v.as_slice())).collect();
        let found = credentials(&scan(&low(&firmware(&given))));
        prop_assert_eq!(found, names.into_iter().zip(values).collect::<Vec<_>>());
    }
}
