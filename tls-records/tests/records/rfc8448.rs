//! The record protection of RFC 8448, section 3 ("Simple 1-RTT Handshake"), bit for bit.
//!
//! The RFC gives the traffic secrets, the keys and initialization vectors that follow from them, and every protected
//! record. The tests derive the keys from the secrets, open each record, and seal its plaintext again.

use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use shoal_tls_records::{Cipher, ContentType, RecordError, RecordKey};

/// One direction in one phase of the connection.
struct Direction {
    secret: &'static str,
    key: &'static str,
    iv: &'static str,
    /// The records that this key protects, in order.
    records: &'static [Record],
}

struct Record {
    content: ContentType,
    /// The plaintext, or how it starts where the RFC's text is long. The tag covers all of it in any case.
    plaintext_start: &'static str,
    plaintext_len: usize,
    sealed: &'static str,
}

const SERVER_HANDSHAKE: Direction = Direction {
    secret: "b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38",
    key: "3fce516009c21727d0f2e4e86ee403bc",
    iv: "5d313eb2671276ee13000b30",
    // EncryptedExtensions, Certificate, CertificateVerify and Finished share a record.
    records: &[Record {
        content: ContentType::Handshake,
        plaintext_start: "080000240022000a00140012001d00170018001901000101010201030104001c00024001000000000b0001b9",
        plaintext_len: 657,
        sealed: "17030302a2d1ff334a56f5bff6594a07cc87b580233f500f45e489e7f33af35edf7869fcf40aa40aa2b8ea73f848a7ca\
            07612ef9f945cb960b4068905123ea78b111b429ba9191cd05d2a389280f526134aadc7fc78c4b729df828b5ecf7b13b\
            d9aefb0e57f271585b8ea9bb355c7c79020716cfb9b1183ef3ab20e37d57a6b9d7477609aee6e122a4cf51427325250c\
            7d0e509289444c9b3a648f1d71035d2ed65b0e3cdd0cbae8bf2d0b227812cbb360987255cc744110c453baa4fcd61092\
            8d809810e4b7ed1a8fd991f06aa6248204797e36a6a73b70a2559c09ead686945ba246ab66e5edd8044b4c6de3fcf2a8\
            9441ac66272fd8fb330ef8190579b3684596c960bd596eea520a56a8d650f563aad27409960dca63d3e688611ea5e22f\
            4415cf9538d51a200c27034272968a264ed6540c84838d89f72c24461aad6d26f59ecaba9acbbb317b66d902f4f292a3\
            6ac1b639c637ce343117b659622245317b49eeda0c6258f100d7d961ffb138647e92ea330faeea6dfa31c7a84dc3bd7e\
            1b7a6c7178af36879018e3f252107f243d243dc7339d5684c8b0378bf30244da8c87c843f5e56eb4c5e8280a2b48052c\
            f93b16499a66db7cca71e4599426f7d461e66f99882bd89fc50800becca62d6c74116dbd2972fda1fa80f85df881edbe\
            5a37668936b335583b599186dc5c6918a396fa48a181d6b6fa4f9d62d513afbb992f2b992f67f8afe67f76913fa388cb\
            5630c8ca01e0c65d11c66a1e2ac4c85977b7c7a6999bbf10dc35ae69f5515614636c0b9b68c19ed2e31c0b3b66763038\
            ebba42f3b38edc0399f3a9f23faa63978c317fc9fa66a73f60f0504de93b5b845e275592c12335ee340bbc4fddd50278\
            4016e4b3be7ef04dda49f4b440a30cb5d2af939828fd4ae3794e44f94df5a631ede42c1719bfdabf0253fe5175be898e\
            750edc53370d2b",
    }],
};

const CLIENT_HANDSHAKE: Direction = Direction {
    secret: "b3eddb126e067f35a780b3abf45e2d8f3b1a950738f52e9600746a0e27a55a21",
    key: "dbfaa693d1762c5b666af5d950258d01",
    iv: "5bd3c71b836e0b76bb73265f",
    records: &[Record {
        content: ContentType::Handshake,
        plaintext_start: "14000020a8ec436d677634ae525ac1fcebe11a039ec17694fac6e98527b642f2edd5ce61",
        plaintext_len: 36,
        sealed: "170303003575ec4dc238cce60b298044a71e219c56cc77b0517fe9b93c7a4bfc44d87f38f80338ac98fc46deb384bd1c\
            aeacab6867d726c40546",
    }],
};

const SERVER_APPLICATION: Direction = Direction {
    secret: "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643",
    key: "9f02283b6c9c07efc26bb9f2ac92e356",
    iv: "cf782b88dd83549aadf1e984",
    records: &[
        // NewSessionTicket.
        Record {
            content: ContentType::Handshake,
            plaintext_start: "040000c90000001e",
            plaintext_len: 205,
            sealed: "17030300de3a6b8f90414a97d6959c3487680de5134a2b240e6cffac116e95d41d6af8f6b580dcf3d11d63c758db289a\
                015940252f55713e061dc13e078891a38efbcf5753ad8ef170ad3c7353d16d9da773b9ca7f2b9fa1b6c0d4a3d03f75e0\
                9c30ba1e62972ac46f75f7b981be63439b2999ce13064615139891d5e4c5b406f16e3fc181a77ca475840025db2f0a77\
                f81b5ab05b94c01346755f69232c86519d86cbeeac87aac347d143f9605d64f650db4d023e70e952ca49fe5137121c74\
                bc2697687e248746d6df353005f3bce18696129c8153556b3b6c6779b37bf15985684f",
        },
        Record {
            content: ContentType::ApplicationData,
            plaintext_start: FIFTY_BYTES,
            plaintext_len: 50,
            sealed: "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8\
                fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d",
        },
        Record {
            content: ContentType::Alert,
            plaintext_start: "0100",
            plaintext_len: 2,
            sealed: "1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9",
        },
    ],
};

const CLIENT_APPLICATION: Direction = Direction {
    secret: "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5",
    key: "17422dda596ed5d9acd890e3c63f5051",
    iv: "5b78923dee08579033e523d9",
    records: &[
        Record {
            content: ContentType::ApplicationData,
            plaintext_start: FIFTY_BYTES,
            plaintext_len: 50,
            sealed: "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b\
                62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4",
        },
        Record {
            content: ContentType::Alert,
            plaintext_start: "0100",
            plaintext_len: 2,
            sealed: "1703030013c9872760655666b74d7ff1153efd6db6d0b0e3",
        },
    ],
};

const FIFTY_BYTES: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\
    202122232425262728292a2b2c2d2e2f3031";

const DIRECTIONS: [Direction; 4] = [SERVER_HANDSHAKE, CLIENT_HANDSHAKE, SERVER_APPLICATION, CLIENT_APPLICATION];

fn bytes(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2));
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand-Label with an empty context (RFC 8446, section 7.1).
fn expand_label(secret: &[u8], label: &str, len: usize) -> Vec<u8> {
    let label = format!("tls13 {label}");
    let info = [&(len as u16).to_be_bytes()[..], &[label.len() as u8], label.as_bytes(), &[0]].concat();
    let mut out = vec![0; len];
    Prk::new_less_safe(HKDF_SHA256, secret).expand(&[&info], Length(len)).unwrap().fill(&mut out).unwrap();
    out
}

impl Direction {
    fn derived_key(&self) -> RecordKey {
        let secret = bytes(self.secret);
        let (key, iv) = (expand_label(&secret, "key", 16), expand_label(&secret, "iv", 12));
        assert_eq!((key.as_slice(), iv.as_slice()), (&*bytes(self.key), &*bytes(self.iv)));
        RecordKey::new(Cipher::Aes128Gcm, &key, &iv, 0).unwrap()
    }
}

#[test]
fn every_record_of_the_rfc_opens() {
    for direction in DIRECTIONS {
        let mut key = direction.derived_key();
        for record in direction.records {
            let mut buffer = bytes(record.sealed);
            let opened = key.open(&mut buffer).unwrap();
            let plaintext = &buffer[opened.plaintext];
            assert_eq!((opened.content, plaintext.len()), (record.content, record.plaintext_len));
            assert!(plaintext.starts_with(&bytes(record.plaintext_start)));
        }
        assert_eq!(key.sequence(), direction.records.len() as u64);
    }
}

#[test]
fn every_record_of_the_rfc_is_sealed_to_the_same_bytes() {
    for direction in DIRECTIONS {
        let (mut opening, mut sealing) = (direction.derived_key(), direction.derived_key());
        for record in direction.records {
            let mut buffer = bytes(record.sealed);
            let opened = opening.open(&mut buffer).unwrap();
            let mut sealed = Vec::new();
            sealing.seal(opened.content, &buffer[opened.plaintext], &mut sealed).unwrap();
            assert_eq!(sealed, bytes(record.sealed));
        }
    }
}

#[test]
fn a_record_opens_only_at_its_place_and_only_unchanged() {
    let record = bytes(CLIENT_APPLICATION.records[0].sealed);
    let (key, iv) = (bytes(CLIENT_APPLICATION.key), bytes(CLIENT_APPLICATION.iv));
    let mut second = RecordKey::new(Cipher::Aes128Gcm, &key, &iv, 1).unwrap();
    let error = second.open(&mut record.clone()).unwrap_err();
    assert!(matches!(error, RecordError::Authentication), "{error}");
    for at in 0..record.len() {
        let mut changed = record.clone();
        changed[at] ^= 1;
        let error = CLIENT_APPLICATION.derived_key().open(&mut changed).unwrap_err();
        let header = at < 5;
        assert!(matches!(error, RecordError::InvalidHeader) == header, "byte {at}: {error}");
        assert!(matches!(error, RecordError::Authentication) != header, "byte {at}: {error}");
    }
    for len in 0..record.len() {
        assert!(CLIENT_APPLICATION.derived_key().open(&mut record[..len].to_vec()).is_err(), "{len} bytes");
    }
}

#[test]
fn lengths_are_checked() {
    assert!(matches!(RecordKey::new(Cipher::Aes128Gcm, &[0; 32], &[0; 12], 0), Err(RecordError::KeyLength)));
    assert!(matches!(RecordKey::new(Cipher::Aes128Gcm, &[0; 16], &[0; 8], 0), Err(RecordError::KeyLength)));
    let mut key = SERVER_APPLICATION.derived_key();
    let error = key.seal(ContentType::ApplicationData, &[0; 16_385], &mut Vec::new()).unwrap_err();
    assert!(matches!(error, RecordError::PlaintextTooLong), "{error}");
    let mut out = Vec::new();
    key.seal(ContentType::ApplicationData, &[0; 16_384], &mut out).unwrap();
    assert_eq!(out.len(), 5 + 16_384 + 1 + 16);
    let mut last = RecordKey::new(Cipher::Aes128Gcm, &[1; 16], &[2; 12], u64::MAX).unwrap();
    let error = last.seal(ContentType::ApplicationData, &[0], &mut Vec::new()).unwrap_err();
    assert!(matches!(error, RecordError::SequenceExhausted), "{error}");
}
