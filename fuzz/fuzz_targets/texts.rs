//! Texts from requests, command lines and reports: names, selectors, units, paths of the mirror, ranges.

#![no_main]

use shoal_api::rollouts::Amount;
use shoal_api::units::{ByteSize, Rate, Span};
use shoal_fuzz::{heap, stable};
use shoal_peer::mirror::fuzzing::{RequestedRange, is_checked, read_range};
use shoal_proto::ids::{ContentId, JobId};
use shoal_proto::image::{Digest, Reference, is_host, is_repository};
use shoal_proto::locality::{Locality, Selector};
use shoal_service::http_client::transport::HttpUrl;

fn check_reference(text: &str) {
    let Some(reference) = stable::text::<Reference>(text) else { return };
    assert!(is_host(&reference.host) && is_repository(&reference.path), "{reference:?}");
}

fn check_selector(text: &str) {
    let terms: Vec<&str> = text.split('|').collect();
    let Ok(selector) = Selector::parse(&terms) else { return };
    assert!(selector.is_valid(), "{selector:?} was parsed and is invalid");
    let again = Selector::parse(&[selector.to_string()]).expect("a printed selector parses");
    assert_eq!(again, selector);
}

fn check_range(text: &str, size: u64) {
    if let RequestedRange::Part { from, to } = read_range(text, size) {
        assert!(from < to && to <= size, "{from} to {to} of {size}");
    }
}

fn check(text: &str, size: u64) {
    check_reference(text);
    check_selector(text);
    stable::text::<Digest>(text);
    stable::text::<Locality>(text);
    stable::text::<ContentId>(text);
    stable::text::<JobId>(text);
    stable::text::<ByteSize>(text);
    stable::text::<Rate>(text);
    stable::text::<Span>(text);
    stable::text::<Amount>(text);
    check_range(text, size);
    let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
    is_checked(path, query);
    if let Some(url) = HttpUrl::parse(text) {
        assert!(!url.authority.contains('@'));
        let _ = url.join(path);
        let _ = url.has_port();
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((size, text)) = data.split_first_chunk::<8>() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    heap::bounded((1 << 20) + 200 * text.len(), || check(text, u64::from_le_bytes(*size)));
});
