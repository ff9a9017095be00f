//! What is believed of an answer.

use proptest::prelude::*;

use super::*;
use crate::refusal::Why;

fn listing(kernel: u64, initrd: Option<u64>) -> Listing {
    let file = |path: &str, len| FileInfo { path: path.into(), len };
    Listing {
        kernel: file("/boot/vmlinuz-6", kernel),
        initrd: initrd.map(|len| file("/boot/initrd.img-6", len)),
        uuid: *b"0123456789abcdef",
        partition: None,
    }
}

fn limits() -> Limits {
    Limits { kernel: 10_000, initrd: 20_000, ..Limits::default() }
}

/// Writes an answer into a file of `len` bytes and reads it.
fn through(result: Result<Listing, Refusal>, len: u64) -> Result<Answer, &'static str> {
    let file = tempfile::tempfile().unwrap();
    Answer { landlock: true, result }.write(&file).unwrap();
    file.set_len(len).unwrap();
    Answer::read(&file, &limits())
}

#[test]
fn lengths_are_believed_if_they_fit_the_file_and_the_limits() {
    let fits = |kernel, initrd, len| through(Ok(listing(kernel, initrd)), len).is_ok();
    assert!(fits(10_000, None, 14_096) && !fits(10_000, None, 14_095));
    // The initrd begins at 4096 + 12288.
    assert!(fits(10_000, Some(20_000), 36_384) && !fits(10_000, Some(20_000), 36_383));
    for (kernel, initrd) in [
        (0, None),
        (10_001, None),
        (u64::MAX, None),
        (u64::MAX - 4096, Some(1)),
        (1, Some(0)),
        (1, Some(20_001)),
        (1, Some(u64::MAX)),
    ] {
        assert!(!fits(kernel, initrd, 1 << 30), "{kernel} {initrd:?}");
    }
    assert!(through(Ok(listing(1, None)), 4095).is_err(), "not a page");
}

#[test]
fn texts_obey_no_terminal_and_have_an_end() {
    let detail = format!("\x1B[2Ja\u{202E}b\n{}", "ü".repeat(4000));
    let answer = Answer { landlock: false, result: Err(Refusal::new(Why::Read, detail)) };
    // Not even if the process that reads leaves them in.
    let bytes = wherry_codec::encode(&Answer {
        result: Err(Refusal::new(Why::Read, "\x1B[2J\u{202E}")),
        ..answer.clone()
    });
    let bytes = bytes.unwrap();
    let mut page = [MAGIC.as_slice(), &(bytes.len() as u32).to_le_bytes(), &bytes].concat();
    page.resize(PAGE as usize, 0);
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&page, 0).unwrap();
    let text = Answer::read(&file, &limits()).unwrap().result.unwrap_err().detail;
    assert_eq!(text, "\u{FFFD}[2J\u{FFFD}");

    answer.write(&file).unwrap();
    let text = Answer::read(&file, &limits()).unwrap().result.unwrap_err().detail;
    assert!(text.starts_with("\u{FFFD}[2Ja\u{FFFD}b\u{FFFD}üü"), "{text}");
    assert!(text.len() <= MAX_TEXT && text.len() > MAX_TEXT - 3);
}

#[test]
fn guids_are_written_as_everywhere() {
    let uuid = *b"\xE3\xBC\x68\x4F\xCD\xE8\xB1\x4D\x96\xE7\xFB\xCA\xF9\x84\xB7\x09";
    let partition = Partition { number: 1, uuid };
    assert_eq!(partition.guid(), "4f68bce3-e8cd-4db1-96e7-fbcaf984b709");
    let listing = listing(1, Some(1));
    assert_eq!(listing.root(), "root=UUID=30313233-3435-3637-3839-616263646566");
}

proptest! {
    #[test]
    fn any_bytes_are_an_answer_that_keeps_to_the_limits_or_none(
        head in prop::collection::vec(any::<u8>(), 0..200),
        size in 0u32..300,
    ) {
        let mut page = [MAGIC.as_slice(), &size.to_le_bytes(), &head].concat();
        page.resize(2 * PAGE as usize, 0);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&page, 0).unwrap();
        if let Ok(Answer { result: Ok(listing), .. }) = Answer::read(&file, &limits()) {
            prop_assert!(listing.kernel.len <= 4096);
        }
    }
}
