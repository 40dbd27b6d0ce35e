//! The OpenAPI documents of the four roles, compared with what the servers of a real region answer.
//!
//! `SHOAL_BLESS=1 cargo test --test openapi` writes the documents again.

use serde_json::{Value, json};
use shoal_api::openapi::{Role, document};
use shoal_testkit::region::ADMIN_TOKEN;
use shoal_testkit::{Process, Program, Setup, noise, until};
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SHOAL: Program = shoal_testkit::program!();

fn path_of(role: Role) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("api/openapi").join(format!("{}.json", role.name()))
}

#[test]
fn the_documents_are_those_of_the_types() {
    for role in Role::ALL {
        let path = path_of(role);
        let text = format!("{:#}\n", document(role));
        if std::env::var_os("SHOAL_BLESS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &text).unwrap();
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(written == text, "{} is not current: run this test with SHOAL_BLESS=1", path.display());
    }
}

/// One answer of a server.
struct Answer {
    status: u16,
    media_type: String,
    body: Vec<u8>,
}

/// Sends a request. Of an endless stream it returns what arrives within half a second.
fn call(addr: &str, method: &str, path: &str, token: Option<&str>, body: Option<(&str, &[u8])>) -> Answer {
    let mut stream = TcpStream::connect(addr).unwrap();
    let is_stream = path.ends_with("/events");
    let patience = if is_stream { Duration::from_millis(500) } else { Duration::from_secs(30) };
    stream.set_read_timeout(Some(patience)).unwrap();
    let auth = token.map_or_else(String::new, |token| format!("authorization: Bearer {token}\r\n"));
    let (kind, bytes) = body.unwrap_or(("text/plain", b""));
    let length = if method == "POST" {
        format!("content-type: {kind}\r\ncontent-length: {}\r\n", bytes.len())
    } else {
        String::new()
    };
    // With HTTP/1.0 the body has no framing and ends with the connection.
    write!(stream, "{method} {path} HTTP/1.0\r\nhost: {addr}\r\n{auth}{length}\r\n").unwrap();
    stream.write_all(bytes).unwrap();
    let mut all = Vec::new();
    let mut buffer = [0; 16 * 1024];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        all.extend_from_slice(&buffer[..read]);
    }
    let end =
        all.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or_else(|| panic!("{method} {path}: no head"));
    let head = String::from_utf8_lossy(&all[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let kind = head.lines().find_map(|line| line.strip_prefix("content-type:"));
    let media_type = kind.map_or_else(String::new, |kind| kind.split(';').next().unwrap().trim().to_string());
    Answer { status, media_type, body: all[end + 4..].to_vec() }
}

/// Checks a value against a schema of a document. Fields that the schema does not name are errors.
struct Checker<'a> {
    document: &'a Value,
}

impl Checker<'_> {
    fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(reference) => {
                let found = self.document.pointer(reference.strip_prefix('#').unwrap());
                self.resolve(found.unwrap_or_else(|| panic!("the document has no {reference}")))
            }
            None => schema,
        }
    }

    fn check(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let schema = self.resolve(schema);
        for list in ["anyOf", "oneOf"] {
            if let Some(choices) = schema[list].as_array() {
                let results: Vec<_> = choices.iter().map(|choice| self.check(choice, value, at)).collect();
                if results.iter().all(Result::is_err) {
                    return Err(format!("{at}: {value} matches none of {results:?}"));
                }
            }
        }
        if let Some(choices) = schema["enum"].as_array()
            && !choices.contains(value)
        {
            return Err(format!("{at}: {value} is none of {choices:?}"));
        }
        if let Some(constant) = schema.get("const")
            && constant != value
        {
            return Err(format!("{at}: {value} is not {constant}"));
        }
        self.check_type(schema, value, at)?;
        self.check_text(schema, value, at)?;
        if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
            for (place, value) in values.iter().enumerate() {
                self.check(items, value, &format!("{at}[{place}]"))?;
            }
        }
        self.check_fields(schema, value, at)
    }

    fn check_type(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let has = |name: &str| match name {
            "null" => value.is_null(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_u64() || value.is_i64(),
            "number" => value.is_number(),
            "string" => value.is_string(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => panic!("{at}: unknown type {other}"),
        };
        let fits = match &schema["type"] {
            Value::String(name) => has(name),
            Value::Array(names) => names.iter().any(|name| has(name.as_str().unwrap())),
            _ => true,
        };
        if fits { Ok(()) } else { Err(format!("{at}: {value} is not of type {}", schema["type"])) }
    }

    /// Checks hexadecimal ids. Other patterns only document how people write a value.
    fn check_text(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let (Some(pattern), Some(text)) = (schema["pattern"].as_str(), value.as_str()) else { return Ok(()) };
        let Some((prefix, rest)) = pattern.strip_prefix('^').and_then(|rest| rest.split_once("[0-9a-f]{")) else {
            return Ok(());
        };
        let len: usize = rest.strip_suffix("}$").unwrap().parse().unwrap();
        let digits = text.strip_prefix(prefix).unwrap_or_default();
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let fits = digits.len() == len && digits.bytes().all(is_hex);
        if fits { Ok(()) } else { Err(format!("{at}: {value} does not match {pattern}")) }
    }

    fn check_fields(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let Some(fields) = value.as_object() else { return Ok(()) };
        if schema["type"] != "object" {
            return Ok(());
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            if !fields.contains_key(name.as_str().unwrap()) {
                return Err(format!("{at}: {name} is missing"));
            }
        }
        for (name, value) in fields {
            let at = format!("{at}.{name}");
            match (schema["properties"].get(name), schema.get("additionalProperties")) {
                (Some(field), _) => self.check(field, value, &at)?,
                (None, Some(more)) if more.is_object() => self.check(more, value, &at)?,
                _ => return Err(format!("{at} is not documented")),
            }
        }
        Ok(())
    }
}

/// A server and its document.
struct Server<'a> {
    role: Role,
    addr: &'a str,
    token: &'a str,
    document: Value,
}

impl<'a> Server<'a> {
    fn new(role: Role, process: &'a Process, token: &'a str) -> Self {
        Self { role, addr: process.http(), token, document: document(role) }
    }

    /// Checks an answer against what the document says about an operation.
    fn check(&self, operation: &Value, what: &str, answer: &Answer) {
        let what = format!("{} {what} answered {}", self.role.name(), answer.status);
        let text = String::from_utf8_lossy(&answer.body);
        let documented = &operation["responses"][answer.status.to_string()];
        assert!(documented.is_object(), "{what}, which is not documented: {text}");
        if answer.status == 304 {
            return;
        }
        let content = &documented["content"][&answer.media_type];
        assert!(content.is_object(), "{what} with the undocumented type {}: {text}", answer.media_type);
        let values: Vec<Value> = match answer.media_type.as_str() {
            "application/json" => vec![serde_json::from_slice(&answer.body).unwrap()],
            "application/x-ndjson" => {
                text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
            }
            _ => return,
        };
        for value in values {
            let checked = Checker { document: &self.document }.check(&content["schema"], &value, "answer");
            assert!(checked.is_ok(), "{what}: {checked:?}\n{value:#}");
        }
    }

    fn operation(&self, method: &str, path: &str) -> &Value {
        &self.document["paths"][path][method.to_ascii_lowercase()]
    }

    /// Sends a documented request and checks the answer.
    fn try_it(&self, method: &str, template: &str, path: &str, body: Option<(&str, &[u8])>) -> Answer {
        let operation = self.operation(method, template);
        assert!(operation.is_object(), "{method} {template} is not documented");
        let token = operation.get("security").map(|_| self.token);
        let answer = call(self.addr, method, path, token, body);
        self.check(operation, &format!("{method} {path}"), &answer);
        if token.is_some() {
            let refused = call(self.addr, method, path, None, body);
            assert_eq!(refused.status, 401, "{method} {path} without a token");
            self.check(operation, path, &refused);
        }
        answer
    }

    fn documented_routes(&self) -> BTreeSet<(String, String)> {
        let paths = self.document["paths"].as_object().unwrap();
        let methods = |(path, operations): (&String, &Value)| {
            let methods = operations.as_object().unwrap().keys();
            methods.map(|method| (method.to_ascii_uppercase(), path.clone())).collect::<Vec<_>>()
        };
        paths.iter().flat_map(methods).collect()
    }

    fn served_routes(&self) -> BTreeSet<(String, String)> {
        let answer = self.try_it("GET", "/v1/routes", "/v1/routes", None);
        let routes: Vec<Value> = serde_json::from_slice(&answer.body).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_string();
        routes.iter().map(|route| (text(&route["method"]), text(&route["path"]))).collect()
    }

    /// Asks every documented GET with these values for the parts of paths and for required queries.
    fn try_every_get(&self, known: &[(&str, &str)]) {
        for (method, template) in self.documented_routes() {
            if method != "GET" {
                continue;
            }
            let mut path = template.clone();
            for (name, value) in known {
                path = path.replace(&format!("{{{name}}}"), value);
            }
            let operation = self.operation("GET", &template).clone();
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let queries =
                parameters.iter().filter(|parameter| parameter["in"] == "query" && parameter["required"] == true);
            for query in queries {
                let name = query["name"].as_str().unwrap();
                let value =
                    known.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no value for {name}"));
                path.push_str(&format!("{}{name}={}", if path.contains('?') { '&' } else { '?' }, value.1));
            }
            assert!(!path.contains('{'), "no value for a part of {path}");
            let answer = self.try_it("GET", &template, &path, None);
            assert!(answer.status < 300, "{path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
            self.try_wrong_ids(&template, &operation);
        }
    }

    /// Asks for an id that cannot be and for one that is not there.
    fn try_wrong_ids(&self, template: &str, operation: &Value) {
        let Some(id) = operation["parameters"].as_array().into_iter().flatten().find(|part| part["name"] == "id")
        else {
            return;
        };
        let schema = Checker { document: &self.document }.resolve(&id["schema"]).clone();
        let unknown = schema["examples"][0].as_str().unwrap();
        for (id, status) in [("no-id", 400), (unknown, 404)] {
            let answer = self.try_it("GET", template, &template.replace("{id}", id), None);
            assert_eq!(answer.status, status, "{template} with {id}");
        }
    }

    /// Sends the example of every documented POST, and bodies that cannot be.
    fn try_every_post(&self) {
        for (method, template) in self.documented_routes() {
            let operation = self.operation(&method, &template).clone();
            let content = &operation["requestBody"]["content"]["application/json"];
            if method != "POST" || !content.is_object() {
                continue;
            }
            let checker = Checker { document: &self.document };
            let example = &content["example"];
            let checked = checker.check(&content["schema"], example, "example");
            assert!(checked.is_ok(), "the example of {template}: {checked:?}");
            let send = |kind: &str, body: &[u8]| self.try_it("POST", &template, &template, Some((kind, body))).status;
            send("application/json", example.to_string().as_bytes());
            assert_eq!(send("application/json", b"not JSON"), 400, "{template}");
            assert_eq!(send("text/plain", example.to_string().as_bytes()), 415, "{template}");
            assert_eq!(send("application/json", br#"{"no-such-field": 1}"#), 422, "{template}");
        }
    }
}

#[test]
fn servers_answer_as_documented() {
    let mut region = Setup::new(SHOAL, 1, 2).peers(|_| vec![format!("admin_token={ADMIN_TOKEN}")]).start();
    // The examples name a registry that does not exist, and an answer must come within the patience of `call`.
    region.seeder.configure("pull_patience=1s");
    region.seeder.restart();
    let admin = region.folder.path().join("cluster/admin.token");
    region.hub.configure(&format!("admin_token='{}'", admin.display()));
    region.hub.restart();
    region.wait_up(2);
    let token = fs::read_to_string(region.folder.path().join("cluster/admin.token")).unwrap();
    let token = token.trim();
    let server = |role, process| Server::new(role, process, token);
    let seeder = server(Role::Seeder, &region.seeder);
    let servers =
        [server(Role::Hub, &region.hub), server(Role::Tracker, &region.tracker), server(Role::Peer, &region.peers[0])];

    // Something of each kind, so that no list is empty.
    let content = region.folder.path().join("big");
    fs::write(&content, noise(3 << 20, 1)).unwrap();
    let job = region.push(&content, "files/big", "1");
    let status = region.wait_active(&job, 2);
    let settings = region.folder.path().join("settings");
    fs::write(&settings, noise(100_000, 2)).unwrap();
    let spec = json!({
        "name": "edge/settings", "version": "1", "path": settings, "to": ["all"], "batch": [1, "100%"], "soak": "100ms",
    });
    let post = |path: &str, body: &Value| {
        seeder.try_it("POST", path, path, Some(("application/json", body.to_string().as_bytes())))
    };
    assert_eq!(post("/v1/rollouts", &spec).status, 200);
    until("the rollout is done", || {
        let answer = seeder.try_it("GET", "/v1/rollout", "/v1/rollout?of=edge/settings", None);
        let view: Value = serde_json::from_slice(&answer.body).ok()?;
        (view["phase"] == "done").then_some(())
    });
    assert_eq!(
        post("/v1/rollouts/dry-run", &json!({ "name": "edge/settings", "version": "1", "to": ["all"] })).status,
        200
    );
    let published =
        seeder.try_it("POST", "/v1/feeds/{name}", "/v1/feeds/gslb/main?kind=gslb", Some(("text/plain", b"weights")));
    assert_eq!(published.status, 200);
    until("a peer has the version", || {
        let answer = call(servers[2].addr, "GET", "/feeds/gslb/main", None, None);
        (answer.status == 200).then_some(())
    });
    until("the hub knows the job", || region.hub_active(&job).filter(|active| *active == 2));

    let content = status["content"].as_str().unwrap().to_string();
    for server in servers.iter().chain([&seeder]) {
        assert_eq!(server.served_routes(), server.documented_routes(), "{}", server.role.name());
        let id = if server.role == Role::Peer { &content } else { &job };
        let known = [("id", id.as_str()), ("path", "gslb/main"), ("name", "edge/settings"), ("of", "edge/settings")];
        server.try_every_get(&known);
        server.try_every_post();
        let answer = call(server.addr, "GET", "/v1/no-such-route", Some(token), None);
        let checked = Checker { document: &server.document }.check(
            &json!({ "$ref": "#/components/schemas/ErrorAnswer" }),
            &serde_json::from_slice(&answer.body).unwrap(),
            "answer",
        );
        assert!(answer.status == 404 && checked.is_ok(), "{}: {checked:?}", server.role.name());
    }
    let hub = &servers[0];
    let refused = hub.try_it("POST", "/v1/reports", "/v1/reports", Some(("application/octet-stream", b"no report")));
    assert_eq!(refused.status, 400);
}
