//! The API's own description: OpenAPI 3.1, at `GET /v1/openapi.json`.
//!
//! ```text
//! the handlers' attributes ──► paths, parameters, bodies, answers ──┐
//! the table of routes ───────► what each may refuse ────────────────┼──► the document
//! mirrors of `model`'s types ► their schemas ───────────────────────┘
//! ```
//!
//! `model` knows nothing of OpenAPI, so its types that a client sees are mirrored here, for their schemas alone.
//! Tests hold the mirrors to the values, and the real answers of every operation to the document.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use model::api::RefusalCode;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{ContentBuilder, PathItem, Ref, RefOr, ResponseBuilder};
use utoipa::{OpenApi, PartialSchema, ToSchema};

use super::api::{self, hosts, login, repls, sessions, system};
use super::error::ErrorBody;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "conman",
        description = "Zero or one live container per repl, on machines that may vanish.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        repls::list, repls::create, repls::show, repls::remove, repls::start, repls::kill, repls::destroy,
        sessions::exec, sessions::logs, sessions::open_shell,
        hosts::hosts, hosts::drain, hosts::undrain, hosts::preempt,
        login::log_in, login::log_out,
        system::follow, system::openapi, system::health, system::ready, system::stuck, system::operations, system::metrics,
    ),
    components(schemas(ErrorBody)),
    tags(
        (name = "repls", description = "Named workspaces, each with at most one live container"),
        (name = "sessions", description = "Into a repl's container"),
        (name = "hosts", description = "The machines of the fleet"),
        (name = "fleet", description = "What changes, and this document"),
        (name = "health", description = "For supervisors and for Prometheus"),
    ),
)]
struct Document;

/// The document. It is the same for as long as the process lives.
pub(super) fn document() -> &'static utoipa::openapi::OpenApi {
    static DOCUMENT: LazyLock<utoipa::openapi::OpenApi> = LazyLock::new(build);
    &DOCUMENT
}

fn build() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    for route in api::routes() {
        if let Some(item) = document.paths.paths.get_mut(route.path)
            && let Some(operation) = operation(item, &route.method)
        {
            add_refusals(operation, &route.refusals);
        }
    }
    document
}

fn operation<'a>(item: &'a mut PathItem, method: &http::Method) -> Option<&'a mut Operation> {
    match method.as_str() {
        "GET" => item.get.as_mut(),
        "PUT" => item.put.as_mut(),
        "POST" => item.post.as_mut(),
        "DELETE" => item.delete.as_mut(),
        _ => None,
    }
}

/// One answer per status, which names the codes that it may carry.
fn add_refusals(operation: &mut Operation, own: &[RefusalCode]) {
    let mut by_status = BTreeMap::<u16, Vec<RefusalCode>>::new();
    for code in own.iter().chain(api::ANY) {
        by_status.entry(code.status()).or_default().push(*code);
    }
    for (status, mut codes) in by_status {
        codes.sort_unstable();
        let codes: Vec<String> = codes.iter().map(|code| format!("`{code}`")).collect();
        let content = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name(ErrorBody::name())))
            .build();
        let answer = ResponseBuilder::new()
            .description(codes.join(", "))
            .content("application/json", content)
            .build();
        let responses = &mut operation.responses.responses;
        responses.insert(status.to_string(), RefOr::T(answer));
    }
}

/// Why something was refused: the closed list of codes.
pub(super) struct ErrorCode;

impl PartialSchema for ErrorCode {
    fn schema() -> RefOr<Schema> {
        let codes = RefusalCode::ALL.iter().map(|code| code.as_str());
        ObjectBuilder::new()
            .schema_type(SchemaType::Type(Type::String))
            .description(Some(
                "Why it was refused, for programs. The texts are stable.",
            ))
            .enum_values(Some(codes))
            .into()
    }
}

impl ToSchema for ErrorCode {
    fn name() -> Cow<'static, str> {
        "ErrorCode".into()
    }
}

/// Which side failed.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "a mirror, for its schema")]
pub(super) enum ErrorSide {
    Client,
    User,
    Platform,
}

/// The spec of a repl.
#[derive(ToSchema)]
#[schema(as = Spec)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "a mirror, for its schema")]
pub(super) struct SpecSchema {
    /// Where the root file system comes from: `host`, `dir:/absolute/path` or `docker:reference`.
    #[schema(
        required = false,
        default = "host",
        pattern = "^(host|dir:/.*|docker:[A-Za-z0-9].*)$"
    )]
    image: String,
    /// The program and its arguments. Looked up in the container's `PATH`.
    #[schema(min_items = 1)]
    command: Vec<String>,
    /// Environment variables, on top of `PATH`, `HOME`, `TERM`, `PORT`, `REPL`.
    #[schema(required = false)]
    env: BTreeMap<String, String>,
    /// The port that sessions go to; absent for a repl that serves nothing.
    #[schema(minimum = 1)]
    port: Option<u16>,
    /// Limits of the whole container.
    #[schema(required = false)]
    limits: LimitsSchema,
    /// Destroy the container when it had no session for so long; absent keeps it until it ends itself.
    #[schema(minimum = 1)]
    idle_timeout_seconds: Option<u64>,
    /// Who may open sessions, where gateways ask for tokens: whoever shows one for it, or everybody.
    #[schema(required = false, default = "private")]
    visibility: VisibilitySchema,
}

/// Who may open sessions to a repl.
#[derive(ToSchema)]
#[schema(as = Visibility)]
#[serde(rename_all = "snake_case")]
#[expect(dead_code, reason = "a mirror, for its schema")]
pub(super) enum VisibilitySchema {
    Private,
    Public,
}

/// Limits of one container.
#[derive(ToSchema)]
#[schema(as = Limits)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "a mirror, for its schema")]
pub(super) struct LimitsSchema {
    /// Memory, the page cache of its files included.
    #[schema(required = false, default = 536_870_912, minimum = 4_194_304)]
    memory_bytes: u64,
    /// CPU time per time, in thousandths of one CPU; absent for no limit.
    #[schema(minimum = 10, maximum = 1_024_000)]
    cpu_millis: Option<u32>,
    /// Processes and threads.
    #[schema(required = false, default = 512, minimum = 2, maximum = 4_194_304)]
    pids: u32,
}

/// What a command left. Output is UTF-8, with replacement characters for what is not, and is cut at 1 MiB each.
#[derive(ToSchema)]
#[schema(as = ExecAnswer)]
#[expect(dead_code, reason = "a mirror, for its schema")]
pub(super) struct ExecAnswerSchema {
    /// The exit code; 128 + n for signal n.
    exit_code: i32,
    /// Its standard output.
    stdout: String,
    /// Its standard error.
    stderr: String,
    /// Whether either was cut.
    truncated: bool,
}

/// What a drain did, each phase's time in milliseconds from the notice.
#[derive(ToSchema)]
#[schema(as = DrainReport)]
#[expect(dead_code, reason = "a mirror, for its schema")]
pub(super) struct DrainReportSchema {
    /// How many containers there were.
    containers: u32,
    /// How many of them were handed to another host.
    handed_off: u32,
    /// How many of those are known to run there.
    started: u32,
    /// How many were still here when the report was due.
    unfinished: u32,
    /// When the store said that nothing new is taken, in milliseconds from the notice, as all that follow; absent of
    /// a phase that did not end in time.
    closed_ms: Option<f64>,
    /// When the hosts that take over had been told what is coming.
    told_ms: Option<f64>,
    /// When the last signal was sent.
    sent_ms: Option<f64>,
    /// When the last container was proven dead.
    dead_ms: Option<f64>,
    /// When the last repl was free or handed off in the store.
    released_ms: Option<f64>,
    /// When what was handed off ran again.
    started_ms: Option<f64>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use model::spec::{Image, Limits, Spec, Visibility};
    use model::wire::node::{DrainReport, ExecAnswer};
    use serde_json::{Value, json};

    use super::{api, document};

    fn as_json() -> Value {
        serde_json::to_value(document()).unwrap()
    }

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let document = as_json();
        let documented: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().unwrap().keys();
                methods.map(|method| (path.clone(), method.to_uppercase()))
            })
            .collect();
        let routed = api::routes()
            .into_iter()
            .map(|route| (route.path.to_owned(), route.method.to_string()))
            .collect();
        assert_eq!(documented, routed);
        assert_eq!(document["openapi"], json!("3.1.0"));
    }

    #[test]
    fn every_operation_names_its_refusals_under_their_status() {
        let document = as_json();
        for route in api::routes() {
            let method = route.method.as_str().to_lowercase();
            let answers = &document["paths"][route.path][&method]["responses"];
            for code in route.refusals.iter().chain(api::ANY) {
                let text = answers[code.status().to_string()]["description"].to_string();
                assert!(
                    text.contains(&format!("`{code}`")),
                    "{method} {} {code}: {text}",
                    route.path
                );
            }
        }
    }

    /// Everything that the document refers to is in it.
    #[test]
    fn no_reference_leads_nowhere() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(list) => list.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = as_json();
        let mut found = vec![];
        references(&document, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for reference in found {
            let pointer = reference.trim_start_matches('#');
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    /// A value with every field has the very fields of its mirror.
    #[test]
    fn the_mirrors_have_the_fields_of_what_they_mirror() {
        let limits = Limits {
            cpu_millis: Some(500),
            ..Limits::default()
        };
        let spec = Spec {
            image: Image::Host,
            command: vec!["serve".into()],
            env: [("A".to_owned(), "b".to_owned())].into(),
            port: Some(8000),
            limits: limits.clone(),
            idle_timeout_seconds: Some(60),
            visibility: Visibility::Public,
        };
        let answer = ExecAnswer {
            exit_code: 0,
            stdout: String::new(),
            stderr: String::new(),
            truncated: false,
        };
        let document = as_json();
        for (name, value) in [
            ("Spec", json!(spec)),
            ("Limits", json!(limits)),
            ("ExecAnswer", json!(answer)),
            ("DrainReport", json!(DrainReport::default())),
        ] {
            let schema = &document["components"]["schemas"][name];
            let fields = |value: &Value| -> BTreeSet<String> {
                value.as_object().unwrap().keys().cloned().collect()
            };
            assert_eq!(fields(&schema["properties"]), fields(&value), "{name}");
        }
        let schemas = &document["components"]["schemas"];
        let defaults = Limits::default();
        let documented = &schemas["Limits"]["properties"];
        assert_eq!(documented["pids"]["default"], json!(defaults.pids));
        let memory = &documented["memory_bytes"]["default"];
        assert_eq!(memory, &json!(defaults.memory_bytes));
    }
}
