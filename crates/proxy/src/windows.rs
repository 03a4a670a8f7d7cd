//! How far HTTP/2 clients may send bodies ahead of what is read of them.
//!
//! Over HTTP/1.1 a body that nobody reads stays with the client and in the socket. Over HTTP/2 it is
//! read off the connection that all calls share, and kept here, as far as the windows let the client
//! send. So a connection's windows are what the bodies of its queued calls may take of memory. They
//! come out of one budget: wide for a few connections, and for very many as narrow as the protocol
//! allows.

use std::sync::Arc;

use crate::source::Budget;

/// A connection gets one of so many parts of what is left of the budget: of 256 MiB the first one
/// 4 MiB, the 90th 1 MiB, the 260th 64 KiB.
const PARTS: usize = 64;
/// Bytes of all bodies of a connection at most.
const WIDEST: u32 = 4 << 20;
/// The window that a connection begins with, which nothing can lower (RFC 9113, 6.9.2).
const NARROWEST: u32 = (64 << 10) - 1;
/// So many bodies that nobody reads leave nothing for the others of their connection.
const BODIES: u32 = 4;

/// The windows of one connection.
#[derive(Debug)]
pub(crate) struct Windows {
    pub(crate) connection: u32,
    /// Of each of its streams.
    pub(crate) stream: u32,
    taken: usize,
    budget: Arc<Budget>,
}

impl Windows {
    /// Takes what they may come to from the budget.
    pub(crate) fn new(budget: &Arc<Budget>) -> Self {
        let taken = budget.take_part(PARTS, (WIDEST - NARROWEST) as usize);
        let connection = NARROWEST + u32::try_from(taken).unwrap_or(0);
        Self { connection, stream: connection / BODIES, taken, budget: Arc::clone(budget) }
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        self.budget.give(self.taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_get_narrower_and_never_exceed_the_budget() {
        const TOTAL: usize = 256 << 20;
        let budget = Arc::new(Budget::new(TOTAL));
        let held: Vec<_> = (0..16_384).map(|_| Windows::new(&budget)).collect();
        assert_eq!((held[0].connection, held[0].stream), (WIDEST, WIDEST / BODIES));
        assert!(held.is_sorted_by(|a, b| a.connection >= b.connection));
        assert!(held[90].connection >= 1 << 20 && held[260].connection >= 2 * NARROWEST);
        assert!(held[16_383].connection < NARROWEST + NARROWEST / 8);
        let beyond = |w: &Windows| (w.connection - NARROWEST) as usize;
        assert!(held.iter().map(beyond).sum::<usize>() <= TOTAL);
        drop(held);
        assert_eq!(Windows::new(&budget).connection, WIDEST, "all of it came back");
    }
}
