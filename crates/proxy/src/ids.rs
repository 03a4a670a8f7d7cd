//! Request ids and trace contexts: unique over processes, sortable by time, cheap.

use std::{
    hash::{BuildHasher as _, RandomState},
    ops::Range,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use http::HeaderValue;

static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// The next of a sequence that another process does not have (splitmix64 over a random seed).
pub(crate) fn unique() -> u64 {
    let mut z =
        SEED.wrapping_add(COUNTER.fetch_add(1, Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// The low hexadecimal digits of `value`, as many as `out` is long.
fn put_hex(out: &mut [u8], value: u64) {
    for (nibble, digit) in out.iter_mut().rev().enumerate() {
        let value = usize::try_from((value >> (4 * nibble)) & 15).unwrap_or(0);
        *digit = HEX.get(value).copied().unwrap_or(b'0');
    }
}

/// Writes each number into its place of a text whose other bytes stay as they are.
fn fill<const LENGTH: usize>(
    mut text: [u8; LENGTH],
    places: &[(Range<usize>, u64)],
) -> [u8; LENGTH] {
    for (place, value) in places {
        if let Some(out) = text.get_mut(place.clone()) {
            put_hex(out, *value);
        }
    }
    text
}

/// A new id of the form of a UUID of version 7: 48 bits of time, then what is unique.
pub(crate) fn request_id(wall_ms: u64) -> HeaderValue {
    let (high, low) = (unique(), unique());
    let text = fill(
        *b"tttttttt-tttt-7hhh-llll-llllllllllll",
        &[
            (0..8, wall_ms >> 16),
            (9..13, wall_ms),
            (15..18, high),
            (19..23, 0x8000 | (low >> 50)),
            (24..36, low),
        ],
    );
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("none"))
}

/// The client's id is kept if it is 1 to 128 visible ASCII characters.
pub(crate) fn is_request_id(value: &HeaderValue) -> bool {
    (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, the ids not all zero (W3C Trace Context). A later version, but
/// for the invalid `ff`, may have more behind that.
pub(crate) fn is_traceparent(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    let Some((known, more)) = bytes.split_at_checked(55) else { return false };
    let is_first = known.starts_with(b"00-");
    if known.starts_with(b"ff-") || !(more.is_empty() || (!is_first && more.starts_with(b"-"))) {
        return false;
    }
    let mut parts = known.split(|&byte| byte == b'-');
    let mut part = |length: usize| {
        parts.next().is_some_and(|part| {
            part.len() == length
                && part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
                && (length == 2 || part.iter().any(|&b| b != b'0'))
        })
    };
    part(2) && part(32) && part(16) && part(2)
}

/// A new trace context.
pub(crate) fn traceparent() -> [u8; 55] {
    fill(
        *b"00-tttttttttttttttttttttttttttttttt-pppppppppppppppp-01",
        &[(3..19, unique()), (19..35, unique() | 1), (36..52, unique() | 1)],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_look_like_uuids_and_are_unique() {
        let first = request_id(0x0123_4567_89ab);
        let text = first.to_str().unwrap();
        assert!(text.starts_with("01234567-89ab-7"), "{text}");
        assert!(text.len() == 36 && is_request_id(&first));
        assert!(matches!(text.as_bytes()[19], b'8'..=b'b'), "{text}");
        assert_ne!(first, request_id(0x0123_4567_89ab));
    }

    #[test]
    fn trace_contexts_made_here_are_valid_and_wrong_ones_are_not() {
        assert!(is_traceparent(&HeaderValue::from_bytes(&traceparent()).unwrap()));
        let ids = format!("{}-{}", "a".repeat(32), "1".repeat(16));
        let is = |text: &str| is_traceparent(&HeaderValue::from_str(text).unwrap());
        for bad in ["", "00-0-0-00", &format!("00-{}-{}-01", "0".repeat(32), "1".repeat(16))] {
            assert!(!is(bad), "{bad}");
        }
        assert!(is(&format!("00-{ids}-01")) && is(&format!("01-{ids}-01")));
        assert!(is(&format!("01-{ids}-01-more")));
        for bad in ["ff-{}-01", "00-{}-01-more", "01-{}-01more", "01-{}"] {
            assert!(!is(&bad.replace("{}", &ids)), "{bad}");
        }
    }
}
