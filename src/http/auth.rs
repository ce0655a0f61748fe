//! API keys: hashed at rest, compared in constant time.

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use xxhash_rust::xxh3::xxh3_64;

use super::errors::{ApiError, Problem};
use crate::config::ApiKey;

/// Whether this request may pass: always if no keys are configured.
pub(super) fn check(keys: &[ApiKey], headers: &HeaderMap) -> Result<(), ApiError> {
    if keys.is_empty() {
        return Ok(());
    }
    let refused = |text| Err(ApiError::new(Problem::Unauthorized, text));
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return refused("no API key was given; send the header Authorization: Bearer KEY");
    };
    let Some(key) = bearer(value.as_bytes()) else {
        return refused("the Authorization header must be of the form Bearer KEY");
    };
    let digest: [u8; 32] = Sha256::digest(key).into();
    // Every key is compared, so that the time says nothing about which one was close.
    let known = keys.iter().fold(Choice::from(0), |known, key| known | key.0.ct_eq(&digest));
    if known.into() { Ok(()) } else { refused("the API key is not known here") }
}

/// Tells the requests of one API key from those of another; 0 without a key.
pub(super) fn tenant(headers: &HeaderMap) -> u64 {
    let key = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
    key.map_or(0, xxh3_64)
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_configured_key_passes() {
        let keys = ["one", "two"].map(|key| ApiKey(Sha256::digest(key).into()));
        let cases = [
            (Some("Bearer one"), true),
            (Some("bearer  two "), true),
            (Some("Bearer three"), false),
            (Some("Bearer "), false),
            (Some("Basic one"), false),
            (Some("one"), false),
            (None, false),
        ];
        for (header, passes) in cases {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(header::AUTHORIZATION, header.parse().unwrap());
            }
            assert_eq!(check(&keys, &headers).is_ok(), passes, "{header:?}");
            assert!(check(&[], &headers).is_ok(), "{header:?}");
        }
    }
}
