//! Fairness: no link and no lane runs far ahead of the others, so that uplinks stay full until the end of a push.
//!
//! # Problem
//!
//! A push is as fast as its narrowest links, as long as these links are full. They are full while every host has
//! something left to send. TCP does not see to that. Connections that share a link share it unevenly for the whole
//! push, because the card's queue is shared by what each connection has there already. In the lab, 16 connections of a
//! seeder got between 62 and 1399 KiB in each half second (ADR 17). So some lanes run far ahead. At the end the rest
//! must come from a few racks. Their uplinks are full while the other uplinks are idle. A healthy push to 4 racks of 4
//! hosts had full uplinks for 9 s, and two thirds of that for 3 s more (ADR 18).
//!
//! # Naive answers
//!
//! A rate for each connection replaces the kernel's shares by ours, and we know less. Round robin at the sender exists
//! and does not help, because a window that drains faster is filled more often. A pause for everything ahead of the
//! median lets some links run dry for half a second.
//!
//! # Answer
//!
//! One rule holds on both sides of a link. **Pause what is more than `lead` pieces ahead of a reference, unless the
//! guard objects.**
//!
//! ```text
//! ahead   = position - reference
//! pause   if ahead > lead      resume if ahead < lead (receiver) or ahead <= lead (sender)
//! ```
//!
//! - `sender`, at a content's origin, pauses a child's queue. Its position is the place of the child's next piece. The
//!   reference is the lower quartile of the children, and the lead is 8 of the child's own pieces.
//! - `receiver`, at every importer, pauses a lane's subscription. Its position is the number of the lane's pieces that
//!   are here. The reference is the slowest lane within a lead of the median. The lead is 2 pieces, or the
//!   height of the trees in racks, whichever is more.
//!
//! What a paused link leaves goes to the others. Hosts that are slow by themselves must not hold the rest up. So the
//! reference ignores the slowest quarter of the children, lanes further behind than a lead, and lanes that have not
//! moved for 1 s. Each step down a tree takes the time of a piece, so lanes of high trees lie apart by nature. With a
//! lead of 2 pieces everywhere, 10,000 hosts took 1.093 of the bound. With the trees' height as the lead they took
//! 1.053.
//!
//! # Why a guard
//!
//! Where links are slow by themselves, pauses cost rate. With owners at half an uplink's rate, every host became as
//! slow as they are (1.70 of the bound). [`ThroughputGuard`] measures the rate over spans of 0.5 s. When the rate falls
//! by a fifth while something is paused, the guard suspends fairness for 2 s, then for 4, 8 and 16 s. After 2 s of
//! pauses, and then every 4 s, a probe resumes everything for one span and measures what passes then (1.43 of the
//! bound). A probe every 2 s would lead to 1.3, but would cost a healthy push 2 to 3 %.
//!
//! # Worth
//!
//! Lab, seeder of 100 Mbit/s: 1.14 to 1.36 of the bound without the sender's side, 1.01 to 1.09 with it (ADR 17). Lab,
//! healthy 4 x 4: 1.09 to 1.15 without the receiver's side, 1.04 to 1.09 with it (ADR 18).
//!
//! Invariant: whatever is paused is looked at again at the next check, at the latest.

mod receiver;
mod sender;
mod throughput_guard;

pub use sender::SendSkew;
pub use throughput_guard::ThroughputGuard;

/// How far a link or a lane may be ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SkewLimit {
    /// The position that the others wait for, in pieces.
    reference: u32,
    /// Pieces that a position may be beyond the reference.
    lead: u32,
}

impl SkewLimit {
    /// Nothing is ever ahead.
    const NONE: Self = Self { reference: u32::MAX, lead: 0 };

    fn ahead(self, position: u32) -> u32 {
        position.saturating_sub(self.reference)
    }

    /// Whether something at this position must pause.
    fn is_ahead(self, position: u32) -> bool {
        self.ahead(position) > self.lead
    }

    /// Whether the others have clearly caught up with this position.
    fn is_caught_up(self, position: u32) -> bool {
        self.ahead(position) < self.lead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_pause_and_resume_lies_one_piece() {
        let limit = SkewLimit { reference: 10, lead: 2 };
        assert!(limit.is_ahead(13) && !limit.is_ahead(12));
        assert!(limit.is_caught_up(11) && !limit.is_caught_up(12));
        assert!(!SkewLimit::NONE.is_ahead(u32::MAX));
    }
}
