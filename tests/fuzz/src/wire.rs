//! Single payloads and headers of the wire, with round trips of what is accepted.

use wherry_migration::wire::digests::Digests;
use wherry_migration::wire::pages::{MAX_CONTENT, encode_runs, parse, parse_lz4};
use wherry_migration::wire::{HEADER_LEN, Header, Kind};

use crate::bytes::Bytes;

/// See the module's text.
pub fn wire(data: &[u8]) {
    let mut input = Bytes(data);
    match input.u8() % 4 {
        0 => header(&input.array::<HEADER_LEN>()),
        1 => {
            let (nr_pages, mut runs) = (u64::from(input.u16()), Vec::new());
            let payload = input.0;
            if let Ok(content) = parse(payload, nr_pages, &mut runs) {
                let due: u64 =
                    runs.iter().filter(|r| !r.zero).map(|r| u64::from(r.nr) * 4096).sum();
                assert_eq!(due, content.len() as u64);
                assert!(runs.iter().all(|r| r.first + u64::from(r.nr) <= nr_pages));
                let mut again = Vec::new();
                encode_runs(&runs, &mut again);
                again.extend_from_slice(content);
                assert_eq!(again, payload);
            }
        }
        2 => {
            let (nr_pages, mut runs, mut room) = (u64::from(input.u16()), Vec::new(), Vec::new());
            if let Ok(content) = parse_lz4(input.0, nr_pages, &mut runs, &mut room) {
                let due: u64 =
                    runs.iter().filter(|r| !r.zero).map(|r| u64::from(r.nr) * 4096).sum();
                assert_eq!(due, content.len() as u64);
            }
            assert!(room.len() <= MAX_CONTENT);
        }
        _ => {
            let (first, nr) = (u64::from(input.u16()), u32::from(input.u16()));
            let mut digests = Digests::default();
            if digests.decode(input.0, first, nr).is_ok() {
                let (mut again, mut back) = (Vec::new(), Digests::default());
                digests.encode(&mut again);
                back.decode(&again, first, nr).expect("what was accepted is accepted again");
                digests.compare(&back, |page| panic!("page {page} changed on its way"));
            }
        }
    }
}

fn header(raw: &[u8; HEADER_LEN]) {
    if let Ok(header) = Header::decode(raw) {
        assert_eq!(header.encode(), *raw);
        if let Some(kind) = Kind::from_u16(header.kind) {
            assert_eq!(kind as u16, header.kind);
        }
    }
}
