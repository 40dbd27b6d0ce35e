//! The OpenAPI 3.1 documents of the four roles.
//!
//! Roles serve different answers at the same path, e.g. `/v1/jobs`, so each role has a document of its own. The
//! documents are in `api/openapi/`. `tests/openapi.rs` writes them with `SHOAL_BLESS=1` and compares them with what
//! servers answer.
//! Invariant: a document lists each route of its role once, with every status that the route can answer.

use crate::access::{AuditEntry, AuditQuery, RevokeRequest, Scope, TokenCreated, TokenRequest, TokenView};
use crate::contents::{ContentStatus, PeerStatus};
use crate::feeds::{FeedListing, FeedVersion, PublishQuery, ReadQuery, VersionPublished};
use crate::hosts::Host;
use crate::hub::{Detail, HubJob, Paging, Receipt};
use crate::images::ResolvedImage;
use crate::jobs::{JobAccepted, JobStatus, OrderRequest, PushRequest};
use crate::limits::{LimitsView, Rates};
use crate::rollouts::{CommandRequest, DryRun, HostVersion, PeerRollout, RolloutAccepted, RolloutSpec, RolloutView};
use crate::schemas;
use crate::service::{ErrorAnswer, Health, Route};
use crate::tracker::{TrackerHost, TrackerJob};
use crate::trust::{CredentialInForce, NextPublisher, TrustInForce};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

/// The roles that serve HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Role {
    Seeder,
    Tracker,
    Hub,
    Peer,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Seeder, Self::Tracker, Self::Hub, Self::Peer];

    /// Returns the role's name, which is also the name of its document.
    pub fn name(self) -> &'static str {
        match self {
            Self::Seeder => "seeder",
            Self::Tracker => "tracker",
            Self::Hub => "hub",
            Self::Peer => "peer",
        }
    }
}

/// Returns the OpenAPI document of a role.
pub fn document(role: Role) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut document = Document { generator: settings.into_generator(), paths: Map::new() };
    service(&mut document);
    match role {
        Role::Seeder => seeder(&mut document),
        Role::Tracker => tracker(&mut document),
        Role::Hub => hub(&mut document),
        Role::Peer => peer(&mut document),
    }
    let schemas = document.generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": format!("Shoal {}", role.name()),
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": document.paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";
const BYTES: &str = "application/octet-stream";

struct Document {
    generator: SchemaGenerator,
    paths: Map<String, Value>,
}

/// One method of one path, under construction. [`Operation::add`] puts it into the document.
struct Operation<'a> {
    document: &'a mut Document,
    method: &'static str,
    path: &'static str,
    parameters: Vec<Value>,
    body: Option<Value>,
    answers: Map<String, Value>,
    summary: &'static str,
    scope: Option<Scope>,
}

impl Document {
    fn get(&mut self, path: &'static str, summary: &'static str) -> Operation<'_> {
        self.operation("get", path, summary)
    }

    fn post(&mut self, path: &'static str, summary: &'static str) -> Operation<'_> {
        self.operation("post", path, summary)
    }

    fn operation(&mut self, method: &'static str, path: &'static str, summary: &'static str) -> Operation<'_> {
        let (parameters, answers) = (Vec::new(), Map::new());
        Operation { document: self, method, path, parameters, body: None, answers, summary, scope: None }
    }

    fn schema<T: JsonSchema>(&mut self) -> Value {
        self.generator.subschema_for::<T>().to_value()
    }
}

impl Operation<'_> {
    /// A part of the path.
    fn part<T: JsonSchema>(mut self, name: &str, description: &str) -> Self {
        let schema = self.document.schema::<T>();
        let part =
            json!({ "name": name, "in": "path", "required": true, "description": description, "schema": schema });
        self.parameters.push(part);
        self
    }

    /// One query parameter.
    fn query(mut self, name: &str, required: bool, description: &str) -> Self {
        let schema = json!({ "type": "string" });
        let query = json!({
            "name": name, "in": "query", "required": required, "description": description, "schema": schema,
        });
        self.parameters.push(query);
        self
    }

    /// Every field of a type as a query parameter.
    fn queries<T: JsonSchema>(mut self) -> Self {
        let schema = T::json_schema(&mut self.document.generator).to_value();
        let fields = schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
        for (name, mut schema) in fields {
            let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            self.parameters.push(json!({
                "name": name, "in": "query", "required": false, "description": description, "schema": schema,
            }));
        }
        self
    }

    /// A JSON body, with an example.
    fn body<T: JsonSchema>(mut self, example: Value) -> Self {
        let schema = self.document.schema::<T>();
        self.body = Some(json!({
            "required": true,
            "content": { JSON: { "schema": schema, "example": example } },
        }));
        self
    }

    /// A body of bytes.
    fn bytes(mut self, description: &str) -> Self {
        self.body = Some(json!({
            "required": true,
            "description": description,
            "content": { BYTES: { "schema": { "type": "string", "contentMediaType": BYTES } } },
        }));
        self
    }

    fn answer(mut self, status: u16, description: &str, content: Value) -> Self {
        self.answers.insert(status.to_string(), json!({ "description": description, "content": content }));
        self
    }

    /// Status 200 with JSON.
    fn json<T: JsonSchema>(self, description: &str) -> Self {
        let schema = self.document.schema::<T>();
        self.answer(200, description, json!({ JSON: { "schema": schema } }))
    }

    /// Status 200 with one JSON value per line, for as long as the description says.
    fn lines<T: JsonSchema>(self, description: &str) -> Self {
        let schema = self.document.schema::<T>();
        self.answer(200, description, json!({ LINES: { "schema": schema } }))
    }

    /// Status 200 with a text of this media type.
    fn text(self, media_type: &str, description: &str) -> Self {
        self.answer(200, description, json!({ media_type: { "schema": { "type": "string" } } }))
    }

    /// An error and what leads to it.
    fn error(self, status: u16, description: &str) -> Self {
        let schema = self.document.schema::<ErrorAnswer>();
        self.answer(status, description, json!({ JSON: { "schema": schema } }))
    }

    /// The request carries a token of at least this scope.
    fn token(mut self, scope: Scope) -> Self {
        self.scope = Some(scope);
        let refused = self.error(401, "The request carries no valid token.");
        let small = match scope {
            Scope::Read => return refused,
            Scope::Push => "The token has a smaller scope than `push`, or does not allow the name or the hosts.",
            Scope::Admin => "The token has a smaller scope than `admin`.",
        };
        refused.error(403, small)
    }

    /// The request may change something, so the audit log must have room for its entry.
    fn audited(self) -> Self {
        self.error(503, "The audit log cannot be written, or the server has too much to do.")
    }

    /// The errors of a JSON body that is not what the schema says.
    fn body_errors(self) -> Self {
        self.error(400, "The body is not JSON, or the request cannot be carried out.")
            .error(415, "The body's content type is not `application/json`.")
            .error(422, "The body does not match its schema.")
    }

    fn add(self) {
        let mut operation = json!({
            "summary": self.summary,
            "parameters": self.parameters,
            "responses": self.answers,
        });
        if let Some(body) = self.body {
            operation["requestBody"] = body;
        }
        if let Some(scope) = self.scope {
            operation["security"] = json!([{ "token": [scope.name()] }]);
        }
        let path = self.document.paths.entry(self.path).or_insert_with(|| json!({}));
        path[self.method] = operation;
    }
}

/// What every role serves.
fn service(document: &mut Document) {
    let health = document.schema::<Health>();
    document
        .get("/healthz", "Whether the role can do its work")
        .json::<Health>("The role works.")
        .answer(503, "The role cannot work; `problems` says why.", json!({ JSON: { "schema": health } }))
        .add();
    document.get("/metrics", "Metrics for Prometheus").text("text/plain", "Prometheus text format 0.0.4.").add();
    document.get("/v1/routes", "The routes of this server").json::<Vec<Route>>("In order of path.").add();
}

fn limits(document: &mut Document) {
    document.get("/v1/limits", "The rate limits in force").json::<LimitsView>("The limits.").add();
    document
        .post("/v1/limits", "Set rate limits until the node restarts")
        .body::<Rates>(json!({ "uplink_in": "200 Mbit/s", "rack_out": "unlimited" }))
        .json::<LimitsView>("The limits that are in force now.")
        .token(Scope::Admin)
        .body_errors()
        .error(403, "The token has a smaller scope than `admin`, or the node has no admin token.")
        .audited()
        .add();
}

fn feeds(document: &mut Document, needs_token: bool) {
    let guard =
        |operation: Operation<'_>| if needs_token { operation.token(Scope::Read).add() } else { operation.add() };
    guard(document.get("/feeds", "The newest version of every feed").json::<FeedListing>("The feeds."));
    let events = document.schema::<FeedVersion>();
    guard(
        document
            .get("/feeds/{path}", "Read a feed, wait for its next version, or stream its versions")
            .part::<String>("path", "The feed's name. With `/events` at the end, a stream of versions.")
            .queries::<ReadQuery>()
            .answer(
                200,
                "The newest version with its sequence as ETag, or a stream of versions.",
                json!({
                    BYTES: { "schema": { "type": "string", "contentMediaType": BYTES } },
                    LINES: { "schema": events },
                    "text/event-stream": { "schema": { "type": "string" } },
                }),
            )
            .answer(304, "There is no newer version than the one in `after` or `If-None-Match`.", json!({}))
            .error(400, "A query parameter is invalid.")
            .error(404, "The node has no version of the feed.")
            .error(409, "The version is large and this seeder has it only in pieces.")
            .error(503, "Too many readers wait."),
    );
}

fn seeder(document: &mut Document) {
    seeder_jobs(document);
    seeder_rollouts(document);
    access(document);
    document
        .get("/v1/contents", "The contents in the seeder's store")
        .json::<Vec<ContentStatus>>("The contents.")
        .token(Scope::Read)
        .add();
    document
        .get("/v1/hosts", "The hosts of the region")
        .json::<Vec<Host>>("In order of index.")
        .token(Scope::Read)
        .add();
    document
        .post("/v1/feeds/{name}", "Publish the next version of a feed")
        .part::<String>("name", "The feed's name.")
        .queries::<PublishQuery>()
        .bytes("The version's data, at most 64 MiB.")
        .json::<VersionPublished>("The version is durable and hosts are being informed.")
        .token(Scope::Push)
        .audited()
        .error(400, "The name, the kind or a selector is invalid, or no host matches.")
        .error(413, "The data is too large for a feed.")
        .error(409, "The clock, the publisher key or its scope does not allow the version.")
        .error(500, "The seeder cannot store the version.")
        .add();
    feeds(document, true);
    trust(document, true);
    next_publisher(document);
    limits(document);
}

fn seeder_jobs(document: &mut Document) {
    let push = json!({
        "path": "/srv/app-v2", "name": "edge/app", "version": "v2", "kind": "blob", "to": ["site=fra"],
    });
    let image = json!({
        "kind": "image", "to": ["all"], "staged": true,
        "image": { "reference": "registry.example:5000/lab/app:v1", "platform": null, "pull": true },
    });
    let order = json!({ "target": "edge/app@v1", "to": [] });
    document
        .post("/v1/push", "Push a version to hosts")
        .body::<PushRequest>(push)
        .json::<JobAccepted>("The job exists.")
        .token(Scope::Push)
        .audited()
        .body_errors()
        .error(409, "The name conflicts with another name, or a rollout of the name is under way.")
        .error(500, "The seeder cannot store the job.")
        .error(503, "Too many jobs or pushes wait.")
        .add();
    document
        .post("/v1/images/resolve", "What pulling an image would bring")
        .body::<PushRequest>(image)
        .json::<ResolvedImage>("The image's blobs.")
        .token(Scope::Push)
        .audited()
        .body_errors()
        .add();
    for (path, summary) in [
        ("/v1/demote", "Replace a content on its hosts by rack shares"),
        ("/v1/promote", "Restore a demoted content on its hosts"),
    ] {
        document
            .post(path, summary)
            .body::<OrderRequest>(order.clone())
            .json::<JobAccepted>("The job exists.")
            .token(Scope::Push)
            .audited()
            .body_errors()
            .error(404, "The seeder remembers no push of the target.")
            .error(409, "The content is too small, gone, the newest or still distributing, or a rollout is under way.")
            .error(500, "The seeder cannot store the job.")
            .add();
    }
    document.get("/v1/jobs", "All jobs").json::<Vec<JobStatus>>("Newest first.").token(Scope::Read).add();
    document
        .get("/v1/jobs/{id}", "One job")
        .part::<schemas::JobId>("id", "The job.")
        .json::<JobStatus>("The job.")
        .token(Scope::Read)
        .error(400, "The id is not 32 hexadecimal digits.")
        .error(404, "The seeder does not know the job.")
        .add();
    document
        .get("/v1/jobs/{id}/events", "A job's progress")
        .part::<schemas::JobId>("id", "The job.")
        .lines::<JobStatus>("One line at each change and at least every 5 s, until the job ends.")
        .token(Scope::Read)
        .error(400, "The id is not 32 hexadecimal digits.")
        .error(404, "The seeder does not know the job.")
        .add();
}

fn trust(document: &mut Document, of_seeder: bool) {
    let shown = json!({ BYTES: { "schema": { "type": "string", "contentMediaType": BYTES } } });
    let show = document.get("/v1/trust", "The trust document in force").answer(
        200,
        "The signed document, as the cluster's folder has it.",
        shown,
    );
    if of_seeder {
        show.token(Scope::Read).add()
    } else {
        show.add()
    }
    let put = document
        .post("/v1/trust", "Put a newer trust document in force")
        .bytes("The signed document, at most 64 KiB.")
        .json::<TrustInForce>("The document is in force, or a newer one was before.")
        .error(409, "The document is invalid, or does not continue the one in force.")
        .error(413, "The body is too large.");
    if of_seeder { put.token(Scope::Admin).audited().add() } else { put.add() }
}

fn credential(document: &mut Document) {
    let shown = json!({ BYTES: { "schema": { "type": "string", "contentMediaType": BYTES } } });
    document.get("/v1/credential", "The hub's credential").answer(200, "The signed credential in force.", shown).add();
    document
        .post("/v1/credential", "Put a renewed credential of the hub in force")
        .bytes("The signed credential, at most 8 KiB.")
        .json::<CredentialInForce>("The credential is in force.")
        .error(409, "The credential is invalid, says something else than the one in force, or ends no later.")
        .error(413, "The body is too large.")
        .add();
}

fn next_publisher(document: &mut Document) {
    document
        .post("/v1/publisher/next", "Make the key for the next trust document")
        .json::<NextPublisher>("The public key. The seeder signs with it once a trust document names it.")
        .token(Scope::Admin)
        .audited()
        .error(500, "The seeder cannot store the key.")
        .add();
}

fn access(document: &mut Document) {
    let token = json!({
        "name": "ci", "scope": "push", "names": ["edge/"], "to": ["site=fra"], "expires": "90d",
    });
    document
        .get("/v1/tokens", "All tokens but the admin token")
        .json::<Vec<TokenView>>("In order of name.")
        .token(Scope::Admin)
        .add();
    document
        .post("/v1/tokens", "Create a token")
        .body::<TokenRequest>(token)
        .json::<TokenCreated>("The token exists. No later answer has its secret.")
        .token(Scope::Admin)
        .audited()
        .body_errors()
        .error(409, "A token of the name exists, or there are too many tokens.")
        .error(500, "The token cannot be stored.")
        .add();
    document
        .post("/v1/tokens/revoke", "Revoke a token")
        .body::<RevokeRequest>(json!({ "name": "ci" }))
        .json::<TokenView>("The token no longer works.")
        .token(Scope::Admin)
        .audited()
        .body_errors()
        .error(404, "There is no such token.")
        .error(409, "The admin token is a file and cannot be revoked.")
        .error(500, "The change cannot be stored.")
        .add();
    document
        .get("/v1/audit", "The audit log")
        .queries::<AuditQuery>()
        .json::<Vec<AuditEntry>>("The newest entries that match, oldest first.")
        .token(Scope::Read)
        .error(400, "A query parameter is invalid.")
        .error(500, "The log cannot be read.")
        .add();
}

fn seeder_rollouts(document: &mut Document) {
    let spec = json!({
        "name": "edge/app", "version": "v2", "to": ["all"], "batch": ["1", "25%", "100%"], "per_rack": 1, "soak": "2m",
    });
    document
        .get("/v1/rollouts", "All rollouts, or those of one name")
        .query("name", false, "Only rollouts of this name.")
        .json::<Vec<RolloutView>>("Newest first.")
        .token(Scope::Read)
        .add();
    document
        .post("/v1/rollouts", "Begin a rollout")
        .body::<RolloutSpec>(spec.clone())
        .json::<RolloutAccepted>("The rollout exists.")
        .token(Scope::Push)
        .audited()
        .body_errors()
        .error(404, "The version was not pushed before and the request names no path.")
        .error(409, "Another rollout, a newer push or a promotion of the name is under way, or hosts lack the version.")
        .error(500, "The seeder cannot store the rollout.")
        .error(503, "Too many pushes wait.")
        .add();
    document
        .post("/v1/rollouts/dry-run", "What a rollout would do")
        .body::<RolloutSpec>(spec)
        .json::<DryRun>("The batches.")
        .token(Scope::Read)
        .body_errors()
        .error(404, "The version was not pushed before and the request names no path.")
        .error(409, "Another rollout, a newer push or a promotion of the name is under way, or hosts lack the version.")
        .add();
    document
        .post("/v1/rollouts/command", "Send a command to a rollout")
        .body::<CommandRequest>(json!({ "of": "edge/app", "command": "pause" }))
        .json::<RolloutView>("The rollout after the command.")
        .token(Scope::Push)
        .audited()
        .body_errors()
        .error(404, "There is no such rollout.")
        .error(409, "The rollout's phase does not allow the command.")
        .error(500, "The seeder cannot store the rollout.")
        .add();
    document
        .get("/v1/rollout", "One rollout")
        .query("of", true, "The rollout's id, or a name, which means its newest rollout.")
        .json::<RolloutView>("The rollout.")
        .token(Scope::Read)
        .error(404, "There is no such rollout.")
        .add();
    document
        .get("/v1/versions", "Each host's version of a name")
        .query("name", true, "The name.")
        .json::<Vec<HostVersion>>("In order of locality.")
        .token(Scope::Read)
        .error(503, "The tracker does not answer.")
        .add();
}

fn tracker(document: &mut Document) {
    document.get("/v1/hosts", "The hosts of the region").json::<Vec<TrackerHost>>("In order of index.").add();
    document.get("/v1/jobs", "All jobs of the region").json::<Vec<TrackerJob>>("In order of id.").add();
    document
        .get("/v1/jobs/{id}", "One job")
        .part::<schemas::JobId>("id", "The job.")
        .json::<TrackerJob>("The job.")
        .error(400, "The id is not 32 hexadecimal digits.")
        .error(404, "The tracker does not know the job.")
        .add();
}

fn hub(document: &mut Document) {
    document.get("/", "The jobs as a page for people").text("text/html", "The page.").token(Scope::Read).add();
    document
        .post("/v1/reports", "Store a tracker's flush")
        .bytes("A CBOR submission: the tracker's credential and the signed flush.")
        .json::<Receipt>("The flush is durable.")
        .error(400, "The body is not a submission.")
        .error(403, "The signer is not a tracker of this cluster and region.")
        .error(413, "The body is too large.")
        .error(500, "The hub cannot store the flush.")
        .add();
    trust(document, false);
    credential(document);
    document
        .get("/v1/jobs", "Jobs of all regions")
        .queries::<Paging>()
        .json::<Vec<HubJob>>("Newest first.")
        .token(Scope::Read)
        .add();
    document
        .get("/v1/jobs/{id}", "One job in each region")
        .part::<schemas::JobId>("id", "The job.")
        .queries::<Detail>()
        .json::<Vec<HubJob>>("One entry a region.")
        .token(Scope::Read)
        .error(400, "The id is not 32 hexadecimal digits.")
        .error(404, "The hub has no report of the job.")
        .error(503, "The hub works on too many questions for hosts.")
        .add();
    access(document);
}

fn peer(document: &mut Document) {
    document.get("/v1/status", "The peer in numbers").json::<PeerStatus>("The numbers.").add();
    document.get("/v1/contents", "The contents in the store").json::<Vec<ContentStatus>>("The contents.").add();
    document
        .get("/v1/contents/{id}", "One content")
        .part::<schemas::ContentId>("id", "The content.")
        .json::<ContentStatus>("The content.")
        .error(400, "The id is not 64 hexadecimal digits.")
        .error(404, "The store does not have the content.")
        .add();
    document.get("/v1/rollouts", "The rollouts of this host").json::<Vec<PeerRollout>>("In order of name.").add();
    feeds(document, false);
    limits(document);
}
