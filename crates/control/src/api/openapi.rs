//! The OpenAPI document, made from one table of routes.

use axum::Json;
use dirigent_core::Access;
use http::Method;
use serde_json::{Map, Value, json};

/// A route as documented.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    /// What a token must allow; `None` where none is needed.
    pub(crate) access: Option<Access>,
    /// In one line.
    pub(crate) summary: &'static str,
    /// Parameters of the query: name, type, meaning.
    pub(crate) query: &'static [(&'static str, &'static str, &'static str)],
    /// What is sent, if anything: its media type and schema.
    pub(crate) body: Option<(&'static str, &'static str)>,
    /// What is answered: the media type and the schema.
    pub(crate) answer: (&'static str, &'static str),
}

const JSON: &str = "application/json";
const WAIT: (&str, &str, &str) = ("wait", "boolean", "Answer when the revision is live or failed");

/// Every route. `Answer` is a JSON object with one key that names what it is.
pub(crate) const ROUTES: &[Route] = &[
    Route {
        method: "get",
        path: "/v1/functions",
        access: Some(Access::View),
        summary: "Functions in the order of their names",
        query: &[
            ("after", "string", "Those after this name"),
            ("limit", "integer", "At most so many (1000)"),
        ],
        body: None,
        answer: (JSON, "Answer"),
    },
    Route {
        method: "get",
        path: "/v1/functions/{namespace}/{name}",
        access: Some(Access::View),
        summary: "Everything that is known of a function",
        query: &[],
        body: None,
        answer: (JSON, "Answer"),
    },
    Route {
        method: "put",
        path: "/v1/functions/{namespace}/{name}",
        access: Some(Access::Deploy),
        summary: "Deploy: create the function, or give it a new revision and settings",
        query: &[
            (
                "check",
                "boolean",
                "Start one sandbox and wait until it is ready before switching (true)",
            ),
            WAIT,
        ],
        body: Some((JSON, "Deploy")),
        answer: (JSON, "Answer"),
    },
    Route {
        method: "delete",
        path: "/v1/functions/{namespace}/{name}",
        access: Some(Access::Deploy),
        summary: "Remove a function",
        query: &[],
        body: None,
        answer: (JSON, "Answer"),
    },
    Route {
        method: "post",
        path: "/v1/functions/{namespace}/{name}/rollback",
        access: Some(Access::Deploy),
        summary: "Make an earlier revision live again",
        query: &[("to", "integer", "Its number (the one before the live one)"), WAIT],
        body: None,
        answer: (JSON, "Answer"),
    },
    Route {
        method: "get",
        path: "/v1/functions/{namespace}/{name}/revisions/{number}",
        access: Some(Access::View),
        summary: "Wait until a revision is live, has failed or was overtaken, and say which",
        query: &[],
        body: None,
        answer: (JSON, "Answer"),
    },
    Route {
        method: "get",
        path: "/v1/functions/{namespace}/{name}/revisions/{number}/environment",
        access: Some(Access::Admin),
        summary: "The values of its environment, which are secrets and shown nowhere else",
        query: &[],
        body: None,
        answer: (JSON, "Answer"),
    },
    Route {
        method: "get",
        path: "/v1/functions/{namespace}/{name}/logs",
        access: Some(Access::View),
        summary: "Lines that its sandboxes wrote, one JSON object a line; `{\"missing\": WHY}` where some are not there",
        query: &[
            ("tail", "integer", "The newest so many (100), 10,000 at most"),
            ("follow", "boolean", "Go on with new lines"),
            ("since_ms", "integer", "Written at or after: milliseconds since 1970"),
            ("until_ms", "integer", "Written before: milliseconds since 1970"),
            ("sandbox", "string", "Of this sandbox only"),
        ],
        body: None,
        answer: ("application/x-ndjson", "LogLine"),
    },
    Route {
        method: "get",
        path: "/v1/invocations/{request_id}",
        access: Some(Access::View),
        summary: "What is remembered of an invocation, and the lines written while it ran",
        query: &[],
        body: None,
        answer: (JSON, "Invocation"),
    },
    Route {
        method: "head",
        path: "/v1/artifacts/{digest}",
        access: Some(Access::View),
        summary: "Whether an artifact is held",
        query: &[],
        body: None,
        answer: (JSON, "Empty"),
    },
    Route {
        method: "get",
        path: "/v1/artifacts/{digest}",
        access: Some(Access::Deploy),
        summary: "An artifact's bytes, as they were sent",
        query: &[],
        body: None,
        answer: ("application/octet-stream", "Binary"),
    },
    Route {
        method: "put",
        path: "/v1/artifacts/{digest}",
        access: Some(Access::Deploy),
        summary: "Send an artifact; its bytes must have the digest",
        query: &[],
        body: Some(("application/octet-stream", "Binary")),
        answer: (JSON, "Artifact"),
    },
    Route {
        method: "get",
        path: "/v1/workers",
        access: Some(Access::View),
        summary: "The workers",
        query: &[],
        body: None,
        answer: (JSON, "Answer"),
    },
    Route {
        method: "get",
        path: "/v1/workers/{name}",
        access: Some(Access::View),
        summary: "A worker and the sandboxes on it",
        query: &[],
        body: None,
        answer: (JSON, "Answer"),
    },
    Route {
        method: "put",
        path: "/v1/workers/{name}/duty",
        access: Some(Access::Admin),
        summary: "Cordon or drain a worker, or take it back",
        query: &[],
        body: Some((JSON, "Duty")),
        answer: (JSON, "Answer"),
    },
    Route {
        method: "delete",
        path: "/v1/workers/{name}",
        access: Some(Access::Admin),
        summary: "Forget a worker that was drained, or is lost",
        query: &[(
            "force",
            "boolean",
            "Also one that is lost and was not drained: its machine is gone for good (false)",
        )],
        body: None,
        answer: (JSON, "Answer"),
    },
    Route {
        method: "get",
        path: "/v1/data-planes",
        access: Some(Access::View),
        summary: "The data planes",
        query: &[],
        body: None,
        answer: (JSON, "Answer"),
    },
    Route {
        method: "put",
        path: "/v1/data-planes/{name}/duty",
        access: Some(Access::Admin),
        summary: "Have a data plane say that it is not ready, leave, or serve again",
        query: &[],
        body: Some((JSON, "Duty")),
        answer: (JSON, "Answer"),
    },
    Route {
        method: "delete",
        path: "/v1/data-planes/{name}",
        access: Some(Access::Admin),
        summary: "Forget a data plane that is gone",
        query: &[],
        body: None,
        answer: (JSON, "Answer"),
    },
    Route {
        method: "get",
        path: "/v1/top",
        access: Some(Access::View),
        summary: "Functions that are active now, the busiest first",
        query: &[("limit", "integer", "At most so many (20)")],
        body: None,
        answer: (JSON, "Answer"),
    },
    Route {
        method: "post",
        path: "/v1/join-tokens",
        access: Some(Access::Admin),
        summary: "Make a token with which somebody may join the cluster",
        query: &[],
        body: Some((JSON, "JoinToken")),
        answer: (JSON, "Any"),
    },
    Route {
        method: "post",
        path: "/v1/join",
        access: None,
        summary: "Join the cluster with the secret of such a token, which is all that it needs",
        query: &[],
        body: Some((JSON, "Join")),
        answer: (JSON, "Any"),
    },
    Route {
        method: "get",
        path: "/v1/members",
        access: Some(Access::Admin),
        summary: "The members of the cluster and until when their certificates are valid",
        query: &[],
        body: None,
        answer: (JSON, "Any"),
    },
    Route {
        method: "delete",
        path: "/v1/members/{role}/{name}",
        access: Some(Access::Admin),
        summary: "Refuse the certificates of a member from now on",
        query: &[],
        body: None,
        answer: (JSON, "Any"),
    },
    Route {
        method: "get",
        path: "/v1/tokens",
        access: Some(Access::Admin),
        summary: "Tokens of the API, without their secrets",
        query: &[],
        body: None,
        answer: (JSON, "Any"),
    },
    Route {
        method: "post",
        path: "/v1/tokens",
        access: Some(Access::Admin),
        summary: "Make a token of the API; its secret is told once",
        query: &[],
        body: Some((JSON, "Token")),
        answer: (JSON, "Any"),
    },
    Route {
        method: "delete",
        path: "/v1/tokens/{name}",
        access: Some(Access::Admin),
        summary: "Revoke a token",
        query: &[],
        body: None,
        answer: (JSON, "Any"),
    },
    Route {
        method: "get",
        path: "/v1/status",
        access: Some(Access::View),
        summary: "What this control plane is and has",
        query: &[],
        body: None,
        answer: (JSON, "Status"),
    },
    Route {
        method: "get",
        path: "/v1/openapi.json",
        access: Some(Access::View),
        summary: "This document",
        query: &[],
        body: None,
        answer: (JSON, "Any"),
    },
    Route {
        method: "get",
        path: "/metrics",
        access: Some(Access::View),
        summary: "Metrics for Prometheus",
        query: &[],
        body: None,
        answer: ("application/openmetrics-text", "Text"),
    },
    Route {
        method: "get",
        path: "/health",
        access: None,
        summary: "Whether the control plane runs; needs no token",
        query: &[],
        body: None,
        answer: ("text/plain", "Text"),
    },
];

/// What a token must allow for a route.
pub(super) fn access(method: &Method, path: &str) -> Option<Access> {
    let takes = |route: &Route, method: &str| {
        route.path == path && route.method.eq_ignore_ascii_case(method)
    };
    // Whatever can be read has a head that can be.
    let is_it = |route: &&Route| {
        takes(route, method.as_str()) || (*method == Method::HEAD && takes(route, "get"))
    };
    // What is not documented is for those who may do everything.
    ROUTES.iter().find(is_it).map_or(Some(Access::Admin), |route| route.access)
}

pub(super) async fn document() -> Json<Value> {
    Json(render())
}

/// The document.
pub(crate) fn render() -> Value {
    let mut schemas = schemas();
    for (name, schema) in membership() {
        schemas[name] = schema;
    }
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Value::Object(methods) = path {
            methods.insert(route.method.to_owned(), operation(route));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Dirigent",
            "description": "The API of the control plane.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas,
        },
    })
}

fn operation(route: &Route) -> Value {
    let schema = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let in_path = route.path.split('/').filter_map(|part| {
        let name = part.strip_prefix('{')?.strip_suffix('}')?;
        Some(json!({
            "name": name, "in": "path", "required": true, "schema": { "type": "string" },
        }))
    });
    let in_query = route.query.iter().map(|(name, kind, meaning)| {
        json!({ "name": name, "in": "query", "description": meaning, "schema": { "type": kind } })
    });
    let parameters: Vec<Value> = in_path.chain(in_query).collect();
    let (media, answer) = route.answer;
    let role = route.access.map(|access| format!("Needs a token of the role `{access}`."));
    let mut operation = json!({
        "summary": route.summary,
        "description": role.unwrap_or_else(|| "Needs no token.".to_owned()),
        "parameters": parameters,
        "responses": {
            "2XX": { "description": "Done", "content": { media: { "schema": schema(answer) } } },
            "default": {
                "description": "Refused or failed",
                "content": { JSON: { "schema": schema("Error") } },
            },
        },
    });
    if let (Some((media, body)), Value::Object(operation)) = (route.body, &mut operation) {
        let body = json!({ "required": true, "content": { media: { "schema": schema(body) } } });
        operation.insert("requestBody".to_owned(), body);
    }
    if let (None, Value::Object(operation)) = (route.access, &mut operation) {
        operation.insert("security".to_owned(), json!([]));
    }
    operation
}

/// What is sent about members of the cluster and tokens.
fn membership() -> [(&'static str, Value); 4] {
    let text = json!({ "type": "string" });
    let token = json!({
        "type": "object",
        "required": ["role", "ttl"],
        "additionalProperties": false,
        "properties": {
            "role": { "enum": ["worker", "data-plane", "control-plane"] },
            "ttl": { "type": "string", "description": "Such as 1h" },
            "name": { "type": ["string", "null"], "description": "Only for who is called so" },
            "many": { "type": "boolean", "description": "For any number, not one (false)" },
        },
    });
    let join = json!({
        "type": "object",
        "required": ["secret", "name", "request"],
        "additionalProperties": false,
        "properties": {
            "secret": text,
            "name": text,
            "hosts": { "type": "array", "items": text },
            "request": { "type": "string", "description": "PKCS #10 as PEM" },
        },
    });
    let api_token = json!({
        "type": "object",
        "required": ["role"],
        "additionalProperties": false,
        "properties": {
            "role": { "enum": ["admin", "deploy", "invoke", "view"] },
            "name": { "type": ["string", "null"] },
            "expires": { "type": ["string", "null"], "description": "Such as 30d" },
        },
    });
    let duty = json!({
        "type": "object",
        "required": ["duty"],
        "additionalProperties": false,
        "properties": { "duty": { "enum": ["in_use", "cordoned", "draining"] } },
    });
    [("JoinToken", token), ("Join", join), ("Token", api_token), ("Duty", duty)]
}

/// What a deploy takes.
fn deploy() -> Value {
    json!({
        "type": "object",
        "required": ["manifest"],
        "additionalProperties": false,
        "properties": {
            "manifest": {
                "type": "object",
                "description": "dirigent.toml as JSON",
                "required": ["name", "sandbox"],
                "properties": {
                    "invocation": {
                        "type": "object",
                        "properties": {
                            "auth": {
                                "enum": ["none", "token"],
                                "description": "With `token`, calls need one of the role \
                                                invoke, deploy or admin (none)",
                            },
                        },
                    },
                },
            },
            "artifact": { "type": ["string", "null"], "pattern": "^sha256:[0-9a-f]{64}$" },
        },
    })
}

/// The keys of an `Answer`.
const ANSWERS: [&str; 12] = [
    "deployed",
    "settled",
    "deleted",
    "functions",
    "function",
    "environment",
    "workers",
    "worker",
    "data_planes",
    "ordered",
    "removed",
    "top",
];

fn schemas() -> Value {
    let answer: Map<String, Value> =
        ANSWERS.iter().map(|name| ((*name).to_owned(), json!({}))).collect();
    json!({
        "Answer": {
            "type": "object",
            "description": "One key says what it is.",
            "minProperties": 1,
            "maxProperties": 1,
            "properties": answer,
        },
        "Deploy": deploy(),
        "LogLine": {
            "type": "object",
            "properties": {
                "at_ms": { "type": "integer" },
                "sandbox": {},
                "stderr": { "type": "boolean" },
                "text": { "type": "string" },
            },
        },
        "Invocation": {
            "type": "object",
            "properties": {
                "record": { "type": "object" },
                "lines": { "type": "array", "items": { "$ref": "#/components/schemas/LogLine" } },
            },
        },
        "Artifact": {
            "type": "object",
            "properties": { "digest": { "type": "string" }, "bytes": { "type": "integer" } },
        },
        "Status": { "type": "object" },
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {
                    "type": "object",
                    "required": ["code", "message"],
                    "properties": {
                        "code": { "type": "string" },
                        "message": { "type": "string" },
                    },
                },
            },
        },
        "Binary": { "type": "string", "format": "binary" },
        "Text": { "type": "string" },
        "Any": {},
        "Empty": {},
    })
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use dirigent_service::reference::check;

    use super::*;

    /// The routes as the reference page shows them.
    fn table() -> String {
        let mut table = String::from("| Route | Does | Query | Role |\n|---|---|---|---|\n");
        for Route { method, path, access, summary, query, .. } in ROUTES {
            let role = access.map_or("", Access::word);
            let names: Vec<_> = query.iter().map(|(name, ..)| format!("`{name}`")).collect();
            let (method, names) = (method.to_uppercase(), names.join(", "));
            writeln!(table, "| `{method} {path}` | {summary} | {names} | {role} |").unwrap();
        }
        table
    }

    #[test]
    fn the_reference_page_shows_every_route() {
        assert_eq!(check("reference/api.md", "routes", &table()), Ok(()));
    }

    #[test]
    fn every_route_that_is_served_is_documented() {
        let source = include_str!("../api.rs");
        let served: Vec<_> = source
            .split(".route(")
            .skip(1)
            .filter_map(|rest| rest.split('"').nth(1))
            .filter(|path| path.starts_with('/'))
            .collect();
        assert!(served.len() >= 12, "{served:?}");
        for path in served {
            assert!(ROUTES.iter().any(|route| route.path == path), "{path} is not documented");
        }
    }

    #[test]
    fn every_schema_that_is_named_exists() {
        let document = render();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let text = document.to_string();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name}");
        }
    }
}
