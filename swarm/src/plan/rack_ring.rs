//! The order of racks in a site, and of sites in the region, in one lane, and the tree over it.
//!
//! Owns: a rotated order of places, and the heap-shaped tree over that order.
//! Invariant: in each lane a parent stands before its child in an order that depends on the roster alone, and not on
//! which hosts are live. So hosts that disagree on which hosts are live never become each other's parents.
//!
//! One hashed order is rotated by `turn * n / L` in lane number `turn` of L. So every place is near the top in its
//! share of lanes. A new hash for each lane would leave some racks with far more exports than others. Slow places come
//! last and have no children. When a place dies, the first live place of its subtree stands in for it, and takes from
//! the nearest live place above. So a death moves only the children of the dead place, in its own lanes.

/// The places of one level in their common order: ordinary places first, then slow places.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    len: u32,
    /// Places that may have children; at least one unless `len` is 0.
    inner: u32,
    /// Places directly below what is above the ring.
    roots: u32,
    /// Places directly below one place.
    fanout: u32,
}

impl Ring {
    /// Creates a ring of `len` places, of which the last `slow` are slow.
    pub fn new(len: u32, slow: u32, roots: u32, fanout: u32) -> Self {
        // Where all places are slow, none counts as slow.
        let inner = if slow < len { len - slow } else { len };
        Self { len, inner, roots: roots.clamp(1, inner.max(1)), fanout }
    }

    /// Returns the tree of the lane with number `turn` of `turns` in the rotation.
    pub fn lane<F: Fn(u32) -> bool>(mut self, turn: u32, turns: u32, live: F) -> LaneTree<F> {
        let inner_turn = turn * self.inner / turns;
        let slow_turn = turn * (self.len - self.inner) / turns;
        let order = self;
        // When only slow places are live, they have to send to each other.
        if order.inner < order.len && !(0..order.inner).any(&live) {
            self.inner = self.len;
        }
        LaneTree { ring: self, order, inner_turn, slow_turn, live }
    }
}

/// One lane's tree. A slot is a position in the lane's order. A place is a position in the common order.
pub struct LaneTree<F> {
    ring: Ring,
    order: Ring,
    inner_turn: u32,
    slow_turn: u32,
    live: F,
}

impl<F: Fn(u32) -> bool> LaneTree<F> {
    fn place(&self, slot: u32) -> u32 {
        let Ring { len, inner, .. } = self.order;
        if slot < inner {
            (slot + self.inner_turn) % inner
        } else {
            inner + (slot - inner + self.slow_turn) % (len - inner)
        }
    }

    fn slot(&self, place: u32) -> u32 {
        let Ring { len, inner, .. } = self.order;
        if place < inner {
            (place + inner - self.inner_turn) % inner
        } else {
            let slow = len - inner;
            inner + (place - inner + slow - self.slow_turn) % slow
        }
    }

    fn is_live(&self, slot: u32) -> bool {
        (self.live)(self.place(slot))
    }

    /// The first slot after those whose heap parent is an inner slot.
    fn heap_end(&self) -> u32 {
        self.ring.inner * self.ring.fanout + self.ring.roots
    }

    fn slot_above(&self, slot: u32) -> Option<u32> {
        if slot >= self.heap_end() {
            // There are more slow places than the heap has leaves: these are spread evenly.
            Some((slot - self.heap_end()) % self.ring.inner)
        } else {
            Some(slot.checked_sub(self.ring.roots)? / self.ring.fanout)
        }
    }

    fn slots_below(&self, slot: u32) -> impl Iterator<Item = u32> + use<F> {
        let Ring { len, inner, roots, fanout } = self.ring;
        let heap = slot * fanout + roots;
        let extra = self.heap_end() + slot;
        (heap..(heap + fanout).min(len)).chain((extra..len).step_by(inner as usize))
    }

    /// The first live inner slot of the subtree at the inner slot `top`. It stands in for `top`.
    fn stand_in(&self, top: u32) -> Option<u32> {
        let Ring { inner, roots, fanout, .. } = self.ring;
        let (mut first, mut last) = (top, top);
        while first < inner {
            if let Some(found) = (first..=last.min(inner - 1)).find(|slot| self.is_live(*slot)) {
                return Some(found);
            }
            (first, last) = (first * fanout + roots, last * fanout + roots + fanout - 1);
        }
        None
    }

    /// Returns the place above `place`; `None` if that is above the ring. Also answers for a dead place, as if it came
    /// back as a leaf.
    pub fn parent(&self, place: u32) -> Option<u32> {
        let slot = self.slot(place);
        let mut at = slot;
        loop {
            at = self.slot_above(at)?;
            if let Some(above) = self.stand_in(at).filter(|above| *above < slot) {
                return Some(self.place(above));
            }
        }
    }

    /// Returns the places directly below the live `place`.
    pub fn children(&self, place: u32) -> Vec<u32> {
        let mut children = Vec::new();
        let slot = self.slot(place);
        if slot >= self.ring.inner {
            return children;
        }
        // Its own subtree, and the subtree of each dead slot above that it stands in for.
        let (mut at, mut done) = (slot, None);
        loop {
            self.collect(self.slots_below(at), done, &mut children);
            done = Some(at);
            match self.slot_above(at) {
                Some(above) if self.stand_in(above) == Some(slot) => at = above,
                _ => return children,
            }
        }
    }

    /// Returns the places directly below what is above the ring.
    pub fn tops(&self) -> Vec<u32> {
        let mut tops = Vec::new();
        self.collect(0..self.ring.roots.min(self.ring.len), None, &mut tops);
        tops
    }

    /// Adds the top place of the live subtree at each of `slots`.
    fn collect(&self, slots: impl Iterator<Item = u32>, except: Option<u32>, into: &mut Vec<u32>) {
        for slot in slots.filter(|slot| Some(*slot) != except) {
            if slot >= self.ring.inner {
                into.extend(self.is_live(slot).then(|| self.place(slot)));
            } else if let Some(top) = self.stand_in(slot) {
                into.push(self.place(top));
            } else {
                let below: Vec<u32> = self.slots_below(slot).collect();
                self.collect(below.into_iter(), None, into);
            }
        }
    }

    /// Returns the live places in the lane's order.
    pub fn live_places(&self) -> impl Iterator<Item = u32> {
        (0..self.ring.len).filter(|slot| self.is_live(*slot)).map(|slot| self.place(slot))
    }
}

/// Returns a lane's turn in the rotations inside sites.
///
/// Sites rotate with the lane's number itself, so a site has children in a run of lanes. If its racks rotated in step,
/// the few racks at its top in that run would do all its exports. A stride near the golden section of `lanes` spreads
/// any run of lanes evenly (a Kronecker sequence).
pub fn stride(lane: u8, lanes: u8) -> u32 {
    let lanes = u32::from(lanes);
    let golden = lanes * 618 / 1000;
    let step = (golden..golden + lanes).find(|step| gcd(*step, lanes) == 1).unwrap_or(1);
    u32::from(lane) * step % lanes
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
