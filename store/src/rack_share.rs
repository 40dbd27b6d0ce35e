//! Demotion and promotion on disk: rack shares beside the whole content or instead of it.
//!
//! Other names may point at the stream files, so the store never punches holes into them. It replaces them by sparse
//! copies.
//! Invariant: a share is durable before it counts as made, and the streams are replaced only after the database says
//! so. Whenever the process stops, the disk has either the whole content or every shard of every share.

use crate::content::Content;
use crate::errors::{BeginError, RackShareError};
use crate::inner::Inner;
use crate::lock::lock;
use crate::stored_parity::RackShare;
use shoal_kv::KvError;
use shoal_proto::ids::{ContentId, Hash, HostIndex, PieceIndex, StripeIndex};
use shoal_proto::rack_placement::RackPlacement;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A parity shard, by stripe and row.
#[derive(Clone, Copy, Debug)]
struct ParityRow {
    stripe: StripeIndex,
    row: usize,
}

impl Inner {
    /// Makes this host's share of a placement durable, beside the whole content and earlier shares.
    pub(crate) fn make_share(
        self: &Arc<Self>,
        id: &ContentId,
        me: HostIndex,
        placement: &RackPlacement,
    ) -> Result<(), RackShareError> {
        let content = self.content(id).filter(|content| content.is_complete()).ok_or(RackShareError::NotWhole)?;
        let _alone = lock(&content.sharing);
        let rows = placement.share(&content.geometry, me).filter_map(|shard| content.parity_row(shard));
        let missing: Vec<ParityRow> = {
            let parity = content.stored_parity();
            let missing = rows.filter(|(stripe, row)| !parity.has(*stripe, *row));
            missing.map(|(stripe, row)| ParityRow { stripe, row }).collect()
        };
        let need = missing.iter().map(|row| u64::from(content.geometry.parity_len(row.stripe))).sum();
        let _space = self.reserve_if_free(need).map_err(RackShareError::NoSpace)?;
        write_parity(&content, &missing)?;
        let mut parity = content.stored_parity();
        missing.iter().for_each(|row| parity.mark(row.stripe, row.row));
        // Another roster index makes other placements: earlier shares of the former index do not count.
        let former = parity.share().filter(|share| share.me == me).cloned();
        let mut share = former.unwrap_or_else(|| RackShare { me, ..RackShare::default() });
        if !share.placements.contains(placement) {
            share.placements.push(placement.clone());
        }
        parity.set_share(Some(share));
        drop(parity);
        content.add_share_bytes(need);
        self.save_state(&content)?;
        self.tables.sync()?;
        Ok(())
    }

    /// Drops everything of a content except its shares. Returns the bytes that are left.
    pub(crate) fn drop_whole(self: &Arc<Self>, id: &ContentId) -> Result<u64, RackShareError> {
        let content = self.content(id).ok_or(RackShareError::NotWhole)?;
        let _alone = lock(&content.sharing);
        let share = content.stored_parity().share().cloned().ok_or(RackShareError::NotWhole)?;
        if !content.is_complete() && !share.whole_dropped {
            return Err(RackShareError::NotWhole);
        }
        let mut pieces = content.geometry.no_pieces();
        for piece in content.shards_of(&share).into_iter().filter_map(|shard| content.geometry.piece_of(shard)) {
            // An interrupted promotion may have left some of them missing.
            if content.has(piece) {
                pieces.set(piece.0);
            }
        }
        let bytes = content.bytes_of(&pieces);
        let space = self.reserve_if_free(bytes).map_err(RackShareError::NoSpace)?;
        let copies = content.layout.copy_sparse(&pieces, "share")?;
        drop(space);
        // From here on readers must not use the streams, whose pieces are about to go.
        content.set_complete(false);
        content.set_have(pieces);
        self.cache.remove_content(id);
        lock(&self.blobs).remove(&content);
        if let Some(share) = content.stored_parity().share_mut() {
            share.whole_dropped = true;
        }
        self.save_state(&content)?;
        self.tables.sync()?;
        content.layout.seal();
        for copy in copies {
            fs::rename(copy.copy, copy.stream)?;
        }
        File::open(&content.dir)?.sync_all()?;
        // Again: a reader may have opened a former stream between the two.
        content.layout.seal();
        let left = bytes + content.parity_bytes();
        content.set_share_bytes(left);
        Ok(left)
    }

    /// Reserves space for the rest of a content of which only shares are left. Returns the contents that were evicted.
    pub(crate) fn reserve_rest(self: &Arc<Self>, id: &ContentId) -> Result<Vec<ContentId>, BeginError> {
        let Some(content) = self.content(id).filter(|content| content.is_whole_dropped()) else {
            return Ok(Vec::new());
        };
        let _alone = lock(&content.sharing);
        let whole = content.geometry.bytes() + content.parity_bytes();
        let freed = self.make_space(whole.saturating_sub(content.share_bytes()), Some(id))?;
        content.layout.allocate()?;
        content.set_share_bytes(whole);
        Ok(freed.evicted)
    }

    /// Drops the shares of a content that stays whole.
    pub(crate) fn discard_share(&self, id: &ContentId) -> Result<(), KvError> {
        let Some(content) = self.content(id).filter(|content| content.is_complete()) else { return Ok(()) };
        let _alone = lock(&content.sharing);
        content.discard_share();
        self.save_state(&content)
    }
}

/// Encodes parity shards and writes them to the parity file. They are durable when this returns.
fn write_parity(content: &Content, rows: &[ParityRow]) -> Result<(), RackShareError> {
    let geometry = &content.geometry;
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(content.parity_path())?;
    // Rows come stripe by stripe, so each stripe is read once.
    for group in rows.chunk_by(|a, b| a.stripe == b.stripe) {
        let stripe = group[0].stripe;
        let pieces = geometry.stripe_pieces(stripe).map(|piece| content.layout.read(PieceIndex(piece)));
        let pieces = pieces.collect::<io::Result<Vec<_>>>()?;
        let refs: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        for ParityRow { row, .. } in group {
            let bytes = content.code.parity(*row, &refs);
            let shard = geometry.shard_at(stripe, u32::from(geometry.data()) + *row as u32);
            if content.manifest.shard_hash(geometry, shard) != Some(Hash::of(&bytes)) {
                return Err(RackShareError::Damaged(stripe));
            }
            let offset = content.stored_parity().offset(geometry, stripe, *row);
            file.write_all_at(&bytes, offset)?;
        }
    }
    file.sync_data()?;
    File::open(&content.dir)?.sync_all()?;
    Ok(())
}
