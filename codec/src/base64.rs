//! Bytes as text: base64 of RFC 4648, with its padding.

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The text of these bytes.
pub fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let at = |nr: usize| u32::from(three.get(nr).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for nr in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * nr)) as usize % 64];
            out.push(if nr <= three.len() { letter.into() } else { '=' });
        }
    }
    out
}

/// The bytes of this text. `None`: it is the text of none.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let bare = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - bare.len() > 2 {
        return None;
    }
    let (mut out, mut bits, mut nr) = (Vec::new(), 0u32, 0);
    for byte in bare.bytes() {
        let value = LETTERS.iter().position(|letter| *letter == byte)?;
        (bits, nr) = (bits << 6 | value as u32, nr + 6);
        if nr >= 8 {
            nr -= 8;
            out.push((bits >> nr) as u8);
        }
    }
    // Bits that belong to no byte are zero: bytes have one text.
    (bits & ((1 << nr) - 1) == 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_that_of_rfc_4648() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foob", "Zm9vYg=="),
            (b"fooba", "Zm9vYmE="),
            (b"foobar", "Zm9vYmFy"),
            (&[0xFB, 0xFF, 0xBF, 0], "+/+/AA=="),
        ] {
            assert_eq!(encode(bytes), text);
            assert_eq!(decode(text).as_deref(), Some(bytes));
        }
        for wrong in ["Z", "Zg", "Zg=", "Zg===", "Z===", "Zm9v\n", "Zm9-", "Zh==", "Zg==Zg=="] {
            assert_eq!(decode(wrong), None, "{wrong:?}");
        }
    }
}
