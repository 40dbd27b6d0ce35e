//! Our record layer beside that of rustls: both open the same records, and each opens what the other sealed.
//!
//! Invariant: where one of them returns plaintext, the other returns the same, or refuses for a reason that is listed
//! here.

#![no_main]

use arbitrary::Arbitrary;
use rustls::crypto::aws_lc_rs::cipher_suite::{TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
};
use rustls::{ContentType as RustlsType, ProtocolVersion, SupportedCipherSuite};
use shoal_fuzz as _;
use shoal_tls_records::{Cipher, ContentType, PLAINTEXT_BYTES_MAX, RECORD_BYTES_MAX, RecordError, RecordKey};

/// The length of a record's header.
const HEADER_BYTES: usize = 5;

#[derive(Arbitrary, Debug)]
struct Record<'a> {
    content: u8,
    plaintext: &'a [u8],
    /// Zeros behind the plaintext, in steps of 67 bytes.
    padding: u8,
    /// A change of one byte on the way: the place and the mask.
    change: Option<(u16, u8)>,
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    chacha: bool,
    key: u8,
    records: Vec<Record<'a>>,
}

/// One key in both implementations. rustls takes only keys of 32 bytes from outside, so AES-128 has no part in this.
struct Both {
    ours: RecordKey,
    ours_back: RecordKey,
    opener: Box<dyn MessageDecrypter>,
    sealer: Box<dyn MessageEncrypter>,
}

fn both(chacha: bool, key: u8) -> Both {
    let (cipher, suite) = match chacha {
        false => (Cipher::Aes256Gcm, TLS13_AES_256_GCM_SHA384),
        true => (Cipher::Chacha20Poly1305, TLS13_CHACHA20_POLY1305_SHA256),
    };
    let SupportedCipherSuite::Tls13(suite) = suite else { panic!("not a suite of TLS 1.3") };
    let iv = [key ^ 0x55; 12];
    let ours = || RecordKey::new(cipher, &[key; 32], &iv, 0).expect("the lengths fit");
    Both {
        ours: ours(),
        ours_back: ours(),
        opener: suite.aead_alg.decrypter(AeadKey::from([key; 32]), Iv::copy(&iv)),
        sealer: suite.aead_alg.encrypter(AeadKey::from([key; 32]), Iv::copy(&iv)),
    }
}

/// Seals with rustls. Its own type goes last, so the type of the record goes before the padding.
fn seal(both: &mut Both, sequence: u64, record: &Record<'_>) -> Vec<u8> {
    let mut inner = record.plaintext.to_vec();
    let padding = usize::from(record.padding) * 67;
    let mut last = record.content;
    if padding > 0 {
        inner.push(std::mem::take(&mut last));
        inner.resize(inner.len() + padding - 1, 0);
    }
    let message = OutboundPlainMessage {
        typ: RustlsType::from(last),
        version: ProtocolVersion::TLSv1_2,
        payload: OutboundChunks::Single(&inner),
    };
    both.sealer.encrypt(message, sequence).expect("rustls seals any plaintext").encode()
}

/// Opens one record with both. Returns whether the connection goes on.
fn open(both: &mut Both, sequence: u64, wire: &[u8]) -> bool {
    let mut ours = wire.to_vec();
    let opened = both.ours.open(&mut ours);
    let mut body = wire[HEADER_BYTES..].to_vec();
    let theirs = InboundOpaqueMessage::new(RustlsType::ApplicationData, ProtocolVersion::TLSv1_2, &mut body);
    let theirs = both.opener.decrypt(theirs, sequence);
    match (&opened, &theirs) {
        (Ok(opened), Ok(theirs)) => {
            assert_eq!(opened.content as u8, u8::from(theirs.typ), "content type");
            assert_eq!(&ours[opened.plaintext.clone()], theirs.payload, "plaintext");
        }
        (Ok(opened), Err(error)) => panic!("we open a record of {opened:?} that rustls refuses: {error}"),
        // rustls checks the type and the header later, and not in its record layer.
        (Err(RecordError::UnexpectedContent(_) | RecordError::InvalidHeader), _) => {}
        (Err(error), Ok(_)) => panic!("rustls opens a record that we refuse: {error}"),
        (Err(_), Err(_)) => {}
    }
    opened.is_ok()
}

/// What we seal, rustls opens.
fn seal_back(both: &mut Both, sequence: u64, record: &Record<'_>) {
    let content = match record.content % 3 {
        0 => ContentType::Alert,
        1 => ContentType::Handshake,
        _ => ContentType::ApplicationData,
    };
    let mut wire = Vec::new();
    both.ours_back.seal(content, record.plaintext, &mut wire).expect("the plaintext fits a record");
    let body = &mut wire[HEADER_BYTES..];
    let message = InboundOpaqueMessage::new(RustlsType::ApplicationData, ProtocolVersion::TLSv1_2, body);
    let opened = both.opener.decrypt(message, sequence).expect("rustls opens what we seal");
    assert_eq!((u8::from(opened.typ), opened.payload), (content as u8, record.plaintext));
}

libfuzzer_sys::fuzz_target!(|input: Input<'_>| {
    let mut both = both(input.chacha, input.key);
    let mut goes_on = true;
    for (sequence, record) in (0..).zip(&input.records) {
        if record.plaintext.len() > PLAINTEXT_BYTES_MAX {
            return;
        }
        seal_back(&mut both, sequence, record);
        let mut wire = seal(&mut both, sequence, record);
        if let Some((at, mask)) = record.change {
            let at = usize::from(at) % wire.len();
            wire[at] ^= mask;
        }
        // A longer record is refused by its header, and the connection ends with it.
        goes_on = goes_on && wire.len() <= RECORD_BYTES_MAX && open(&mut both, sequence, &wire);
    }
});
