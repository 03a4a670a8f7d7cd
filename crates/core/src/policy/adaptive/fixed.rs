//! Fixed-point arithmetic: the core has no floats, so that every machine decides the same.

/// One, as a share in 2^-32.
pub(super) const ONE: u64 = 1 << 32;

/// log2(1 + a/b) in 2^-16, by repeated squaring.
pub(super) fn log2_one_plus(a: u64, b: u64) -> u64 {
    let b = u128::from(b.max(1));
    let ratio = ((u128::from(a) + b) << 32) / b;
    let whole = ratio.ilog2().saturating_sub(32);
    // From 1 to 2.
    let mut rest = ratio >> whole;
    let mut log = u64::from(whole) << 16;
    for bit in (0..16).rev() {
        rest = (rest * rest) >> 32;
        if rest >= 2 * u128::from(ONE) {
            rest >>= 1;
            log |= 1 << bit;
        }
    }
    log
}

/// A share to the power of `n`.
pub(super) fn power(share: u64, mut n: u64) -> u64 {
    let times =
        |a: u64, b: u64| u64::try_from((u128::from(a) * u128::from(b)) >> 32).unwrap_or(u64::MAX);
    let (mut result, mut square) = (ONE, share.min(ONE));
    while n > 0 {
        if n % 2 == 1 {
            result = times(result, square);
        }
        square = times(square, square);
        n /= 2;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_exact_to_five_digits() {
        assert_eq!(log2_one_plus(0, 7), 0);
        assert_eq!(log2_one_plus(1, 1), 1 << 16);
        assert_eq!(log2_one_plus(255, 1), 8 << 16);
        // log2(1 + 175/10) = 4.20945
        let log = (log2_one_plus(175, 10) * 100_000) >> 16;
        assert!((420_943..=420_946).contains(&log), "{log}");
        assert!(log2_one_plus(u64::MAX, 1) >= 63 << 16);
        assert!(log2_one_plus(5, 0) > 0);
    }

    #[test]
    fn powers_of_shares() {
        assert_eq!(power(ONE, 1000), ONE);
        assert_eq!(power(0, 0), ONE);
        assert_eq!(power(0, 3), 0);
        assert_eq!(power(ONE / 2, 10), ONE >> 10);
        assert_eq!(power(u64::MAX, 2), ONE);
    }
}
