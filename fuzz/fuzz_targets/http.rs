//! The HTTP server of the roles: whatever a client sends, the answers are well-formed and few.

#![no_main]

use libfuzzer_sys::Corpus;
use shoal_api::rollouts::RolloutSpec;
use shoal_fuzz::heap;
use shoal_service::extract::{JsonBody, PathParam, QueryParams};
use shoal_service::http_server::Server;
use shoal_service::http_server::fuzzing::App;
use shoal_service::metrics::Metrics;
use shoal_service::routes::Routes;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use tokio::runtime::{Builder, Runtime};

/// Answers to one connection. More requests fit no input of libFuzzer's default length.
const ANSWERS_MAX: usize = 512;

struct Fixture {
    app: App,
    runtime: Runtime,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let routes = Routes::new()
        .get("/v1/echo/{name}", async |PathParam(name): PathParam<String>| name)
        .get("/v1/query", async |QueryParams(query): QueryParams<BTreeMap<String, u64>>| format!("{}", query.len()))
        .post("/v1/rollouts", async |JsonBody(spec): JsonBody<RolloutSpec>| spec.name);
    let server = Server::new("peer", Metrics::default(), Arc::new(Vec::new), routes);
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime starts");
    Fixture { app: App::new(server), runtime }
});

/// Takes one answer off the front. Panics if it has no proper form.
fn take_answer<'a>(bytes: &'a [u8], request: &[u8]) -> &'a [u8] {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("the head of an answer ends");
    let head = std::str::from_utf8(&bytes[..end]).expect("a head is text");
    let body = &bytes[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("an answer has a status");
    let status: u16 = status.parse().expect("a status is a number");
    assert!(head.starts_with("HTTP/1.1 ") || head.starts_with("HTTP/1.0 "), "{head}");
    let mut len = None;
    for line in lines {
        let (name, value) = line.split_once(':').expect("a header has a name");
        assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'), "{head}");
        if name.eq_ignore_ascii_case("content-length") {
            assert!(len.replace(value.trim().parse::<usize>().expect("a length is a number")).is_none());
        }
    }
    assert_ne!(status, 500, "no request leads to an internal error: {}", String::from_utf8_lossy(request));
    body.get(len.unwrap_or(0)..).expect("an answer is as long as it says")
}

libfuzzer_sys::fuzz_target!(|request: &[u8]| -> Corpus {
    // An answer to HEAD has a length and no body, which only the request tells.
    if request.windows(4).any(|four| four == b"HEAD") {
        return Corpus::Reject;
    }
    let Fixture { app, runtime } = &*FIXTURE;
    let answer = heap::bounded((4 << 20) + 16 * request.len(), || runtime.block_on(app.answer(request)));
    let mut rest = &answer[..];
    let mut count = 0;
    while !rest.is_empty() {
        rest = take_answer(rest, request);
        count += 1;
        assert!(count <= ANSWERS_MAX, "more answers than requests");
    }
    Corpus::Keep
});
