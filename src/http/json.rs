//! Writing JSON by hand: straight into the buffer that leaves on the socket.

/// Appends `text` as a JSON string, quotes included.
pub(super) fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    escape(out, text);
    out.push(b'"');
}

/// Appends `text` escaped for the inside of a JSON string. Runs of plain bytes are copied whole.
pub(super) fn escape(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let mut start = 0;
    for (i, &byte) in bytes.iter().enumerate() {
        let kind = ESCAPE[usize::from(byte)];
        if kind == 0 {
            continue;
        }
        out.extend_from_slice(&bytes[start..i]);
        start = i + 1;
        if kind == b'u' {
            let hex = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
            let digits = [b'\\', b'u', b'0', b'0', hex(byte >> 4), hex(byte & 15)];
            out.extend_from_slice(&digits);
        } else {
            out.extend_from_slice(&[b'\\', kind]);
        }
    }
    out.extend_from_slice(&bytes[start..]);
}

/// Appends a number in decimal.
pub(super) fn integer(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends a log probability; JSON has no infinity, and OpenAI writes -9999 for "never".
pub(super) fn logprob(out: &mut Vec<u8>, value: f32) {
    use std::io::Write;
    let value = if value.is_finite() { value.max(-9999.0) } else { -9999.0 };
    // A `Vec` takes every write.
    let _ = write!(out, "{value}");
}

/// `text` in quotes, cut after `limit` characters: for error messages.
pub(super) fn shortened(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], text.len()),
    }
}

/// 0: as it is; `u`: as `\u00xx`; else the letter after the backslash.
const ESCAPE: [u8; 256] = {
    let mut table = [0; 256];
    let mut control = 0;
    while control < 0x20 {
        table[control] = b'u';
        control += 1;
    }
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0a] = b'n';
    table[0x0c] = b'f';
    table[0x0d] = b'r';
    table[0x22] = b'"';
    table[0x5c] = b'\\';
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_escaped_reads_back_the_same(text in any::<String>()) {
            let mut out = Vec::new();
            string(&mut out, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }

    #[test]
    fn every_control_character_reads_back_the_same() {
        let text: String = (0..0x80u8).map(char::from).collect();
        let mut out = Vec::new();
        string(&mut out, &text);
        assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        assert_eq!(out.len(), serde_json::to_vec(&text).unwrap().len());
    }

    #[test]
    fn a_logprob_is_always_a_json_number() {
        for value in [0.0, -0.0, -1.5, f32::NEG_INFINITY, f32::NAN, f32::MIN, -1e-30] {
            let mut out = Vec::new();
            logprob(&mut out, value);
            assert!(serde_json::from_slice::<f64>(&out).unwrap() >= -9999.0, "{value}");
        }
    }

    #[test]
    fn a_long_value_is_shortened_between_characters() {
        assert_eq!(shortened("äöü", 3), "\"äöü\"");
        assert_eq!(shortened("äöü", 2), "\"äö\"… (6 bytes)");
    }
}
