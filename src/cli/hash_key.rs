//! `cuelight hash-key`: the digest of an API key, so that the key itself is in no file.

use std::io::{Read, Write};

use super::USAGE;
use crate::config::ApiKey;

/// Longer than any key that fits into a header.
const LONGEST: u64 = 8 << 10;

/// Reads a key on `input` and prints `sha256:<64 hex digits>`; white space around the key does not
/// count. Returns the exit code: 0, or [`USAGE`] with the reason on `err`.
pub fn hash_key(input: &mut dyn Read, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    match read(input) {
        Ok(key) => {
            let ApiKey(digest) = ApiKey::of(&key);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = writeln!(out, "sha256:{hex}");
            0
        }
        Err(why) => {
            let _ = writeln!(err, "standard input {why}");
            USAGE
        }
    }
}

fn read(input: &mut dyn Read) -> Result<String, String> {
    let mut text = String::new();
    let read = input.take(LONGEST + 1).read_to_string(&mut text);
    read.map_err(|error| format!("cannot be read as text: {error}"))?;
    if text.len() as u64 > LONGEST {
        return Err(format!("holds more than {LONGEST} bytes; give it one key"));
    }
    match text.trim() {
        "" => Err("holds no key; try: printf %s \"$KEY\" | cuelight hash-key".into()),
        // It could never be sent: header values are visible ASCII.
        key if !key.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err("holds more than one word, or a character that is not ASCII".into())
        }
        key => Ok(key.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(input: &[u8]) -> (u8, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = hash_key(&mut &*input, &mut out, &mut err);
        assert!(out.is_empty() != err.is_empty(), "one of the two");
        (code, String::from_utf8(if code == 0 { out } else { err }).unwrap())
    }

    #[test]
    fn the_digest_is_that_of_the_key_without_its_newline() {
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n";
        assert_eq!(run(b"abc"), (0, abc.into()));
        assert_eq!(run(b"abc\r\n"), (0, abc.into()));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for input in [&b""[..], b" \n", b"a b", b"\xff", "schl\u{fc}ssel".as_bytes(), &[b'a'; 9000]]
        {
            let (code, text) = run(input);
            assert_eq!(code, USAGE, "{text}");
        }
    }
}
