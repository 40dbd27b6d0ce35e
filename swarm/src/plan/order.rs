//! The order of racks (or sites) in a lane, and the heap-shaped tree it stands for.
//!
//! One hashed base order is rotated by `lane * n / L`, so every rack is near the top in its share of lanes; hashing
//! anew per lane would leave some racks with far more exports than others. Slow racks take the last places, which
//! are leaves. A dead rack's place is taken by the last live one, so that few others move.

/// Children of a rack in the tree of a lane (d).
pub(super) const FANOUT: u32 = 2;

/// A rack or site to be ordered.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// Index in the plan's table.
    pub(super) id: u32,
    /// Hash of its path: its place in the base order.
    pub(super) hash: u64,
    /// Whether it has a live host.
    pub(super) live: bool,
    /// Whether its uplink is slower than the rest's.
    pub(super) slow: bool,
}

/// SplitMix64's finaliser: spreads the bits of a key. (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators", 2014.)
pub(super) fn mix(key: u64) -> u64 {
    let mut z = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Hash of a path's components.
pub(super) fn hash_path(parts: &[&str]) -> u64 {
    // FNV-1a with a separator no name contains, then mixed: FNV alone is weak in the high bits.
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([b'/']));
    mix(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
}

/// Sorts into the base order: fast ones by hash, then slow ones by hash.
pub(super) fn sort(items: &mut [Item]) {
    items.sort_unstable_by_key(|item| (item.slow, item.hash, item.id));
}

/// Which racks have an uplink declared at less than half of the median of those declared.
pub(super) fn slow_racks(uplinks: &[u32]) -> Vec<bool> {
    let mut declared: Vec<u32> = uplinks.iter().copied().filter(|rate| *rate > 0).collect();
    declared.sort_unstable();
    let median = declared.get(declared.len() / 2).copied().unwrap_or(0);
    uplinks.iter().map(|rate| *rate > 0 && *rate < median / 2).collect()
}

/// Position of the parent of a position above 0.
pub(super) fn parent_of(position: u32) -> u32 {
    (position - 1) / FANOUT
}

const GONE: u32 = u32::MAX;

/// The tree of one lane over one list of items, which are named by their place in the base order.
#[derive(Debug)]
pub(super) struct LaneOrder {
    /// Item at each position, live ones only.
    at: Box<[u32]>,
    /// Position of each item; `GONE` for dead ones.
    position: Box<[u32]>,
}

impl LaneOrder {
    pub(super) fn new(items: &[Item], lane: u8, lanes: u8) -> Self {
        let fast = items.iter().take_while(|item| !item.slow).count();
        let turn = if fast == 0 { 0 } else { usize::from(lane) * fast / usize::from(lanes) };
        let mut at: Vec<u32> = (0..fast).map(|place| ((place + turn) % fast) as u32).collect();
        at.extend(fast as u32..items.len() as u32);
        let live = |place: u32| items[place as usize].live;
        let mut hole = 0;
        loop {
            while at.last().is_some_and(|place| !live(*place)) {
                at.pop();
            }
            while hole < at.len() && live(at[hole]) {
                hole += 1;
            }
            if hole >= at.len() {
                break;
            }
            at.swap_remove(hole);
        }
        let mut position = vec![GONE; items.len()];
        for (index, place) in at.iter().enumerate() {
            position[*place as usize] = index as u32;
        }
        Self { at: at.into(), position: position.into() }
    }

    /// Item at the top.
    pub(super) fn first(&self) -> Option<u32> {
        self.at(0)
    }

    pub(super) fn at(&self, position: u32) -> Option<u32> {
        self.at.get(position as usize).copied()
    }

    pub(super) fn position(&self, place: u32) -> Option<u32> {
        self.position.get(place as usize).copied().filter(|position| *position != GONE)
    }

    /// Items below a position.
    pub(super) fn children(&self, position: u32) -> impl Iterator<Item = u32> + '_ {
        let first = position * FANOUT + 1;
        (first..first + FANOUT).filter_map(|position| self.at(position))
    }

    /// Items from the top.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.at.iter().copied()
    }
}
