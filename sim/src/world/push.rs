//! Contents: what to push, and what was pushed.

use super::{ContentNumber, INLINE_MAX, LANES, World};
use crate::layout::SEEDER;
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::geometry::Geometry;
use shoal_proto::ids::{ContentId, Hash, HostIndex, JobId};
use shoal_proto::locality::Selector;
use shoal_swarm::io::{Input, Via};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Data shards in a stripe, by default.
const DATA: u8 = 16;
/// Parity shards in a stripe, by default.
const PARITY: u8 = 4;

/// A content to push.
#[derive(Clone, Debug)]
pub struct Push {
    /// The name of the content.
    pub name: String,
    /// The kind, which sets the priority class.
    pub kind: Kind,
    /// Number of pieces.
    pub pieces: u32,
    /// Length of each piece, bytes.
    pub piece_bytes: u32,
    /// Data shards in a stripe (k).
    pub data: u8,
    /// Parity shards in a stripe (m).
    pub parity: u8,
    /// The hosts that receive it.
    pub to: Selector,
}

impl Push {
    /// A blob for all hosts, with k = 16 and m = 4.
    pub fn blob(pieces: u32, piece_bytes: u32) -> Self {
        let (name, kind, to) = ("blob".into(), Kind::Blob, Selector::all());
        Self { name, kind, pieces, piece_bytes, data: DATA, parity: PARITY, to }
    }
}

/// A content that was pushed.
pub struct Pushed {
    /// The announcement of the push.
    pub announcement: Arc<Announcement>,
    /// The shape of the content.
    pub geometry: Geometry,
    /// When it was pushed, or last promoted, nanoseconds.
    pub at: u64,
    /// Pieces that have reached any host from the seeder.
    pub out: Bitmap,
    /// When each host had the whole content, nanoseconds.
    pub done: BTreeMap<HostIndex, u64>,
}

impl World {
    /// Pushes a content from the seeder to the selected hosts.
    pub fn push(&mut self, push: &Push) -> ContentNumber {
        let number = self.pushes.len();
        let content = ContentId(Hash::of(&(number as u64).to_be_bytes()).0);
        let lens: Arc<[u32]> = vec![push.piece_bytes; push.pieces as usize].into();
        let geometry = Geometry::new(push.data, push.parity, LANES, &content, lens).expect("a sensible geometry");
        let mut job = [0; 16];
        job[..8].copy_from_slice(&(number as u64).to_be_bytes());
        let announcement = Arc::new(Announcement {
            job: JobId(job),
            content,
            kind: push.kind,
            name: push.name.clone(),
            version: number.to_string(),
            sequence: number as u64 + 1,
            selector: push.to.clone(),
            origin: self.members[&SEEDER].node,
            manifest_bytes: 1000,
            size: geometry.bytes(),
            created_at: number as u64 + 1,
            expires_at: u64::MAX,
            order: None,
            staged: false,
            feed: None,
        });
        let inline = geometry.bytes() <= INLINE_MAX;
        let have = Bitmap::full(geometry.piece_count());
        *self.disk_mut(SEEDER, number) = Some(have.clone());
        self.pushes.push(Pushed {
            announcement: announcement.clone(),
            out: geometry.no_pieces(),
            geometry: geometry.clone(),
            at: self.now,
            done: BTreeMap::new(),
        });
        self.numbers.insert(content, number);
        self.input(SEEDER, Input::Announced { from: None, via: Via::Lane(0), announcement, inline });
        self.input(SEEDER, Input::ContentReady { content, geometry, have });
        number
    }
}
