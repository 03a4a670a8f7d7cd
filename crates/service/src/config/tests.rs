//! Precedence, origins, and what is said about keys and values that are wrong.

use std::net::SocketAddr;

use serde::Deserialize;

use super::*;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sample {
    state: Option<String>,
    api: Api,
    images: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Api {
    listen: SocketAddr,
    max_body: u32,
    tokens: Vec<String>,
    open: bool,
}

impl Default for Api {
    fn default() -> Self {
        let listen = "127.0.0.1:9091".parse().unwrap();
        Self { listen, max_body: 1024, tokens: Vec::new(), open: false }
    }
}

fn sources<'a>(file: Option<&'a str>, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources<'a> {
    Sources {
        file: file.map(|text| (Path::new("sample.toml"), text)),
        prefix: "X_",
        env: env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        reserved: &["X_TOKEN"],
        flags: flags
            .iter()
            .map(|(key, value)| Flag {
                flag: format!("--{}", key.replace('.', "-")),
                key: (*key).to_owned(),
                value: (*value).to_owned(),
            })
            .collect(),
    }
}

fn fail(sources: Sources<'_>) -> String {
    load::<Sample>(sources).unwrap_err().to_string()
}

#[test]
fn the_keys_are_those_of_the_type() {
    let keys = keys::<Sample>();
    let paths: Vec<_> = keys.iter().map(|key| (key.path.as_str(), key.kind)).collect();
    assert_eq!(
        paths,
        [
            ("state", Kind::Text),
            ("api.listen", Kind::Text),
            ("api.max_body", Kind::Number),
            ("api.tokens", Kind::List),
            ("api.open", Kind::Bool),
            ("images", Kind::Table),
        ]
    );
}

#[test]
fn flags_win_over_variables_over_the_file_over_defaults() {
    let file = "[api]\nmax_body = 1\nopen = true\ntokens = [\"a\"]\n[images]\nx = [\"y\"]\n";
    let loaded = load::<Sample>(sources(
        Some(file),
        &[("X_API_MAX_BODY", "2"), ("X_API_OPEN", "false"), ("X_TOKEN", "t"), ("HOME", "/")],
        &[("api.max_body", "3")],
    ))
    .unwrap();
    assert_eq!(loaded.value.api.max_body, 3);
    assert!(!loaded.value.api.open);
    let settings = loaded.settings().unwrap();
    let shown: Vec<_> = settings
        .iter()
        .map(|setting| format!("{} = {} # {}", setting.key, setting.value, setting.origin))
        .collect();
    assert_eq!(
        shown,
        [
            "state =  # default",
            "api.listen = \"127.0.0.1:9091\" # default",
            "api.max_body = 3 # --api-max_body",
            "api.tokens = [\"a\"] # sample.toml:4",
            "api.open = false # $X_API_OPEN",
            "images = { x = [\"y\"] } # sample.toml:5",
        ]
    );
}

#[test]
fn an_unknown_key_in_the_file_is_shown_with_file_line_and_caret() {
    let error = fail(sources(Some("[api]\nlisten = \"127.0.0.1:1\"\nlitsen = 1\n"), &[], &[]));
    assert!(error.starts_with("sample.toml: TOML parse error at line 3, column 1"), "{error}");
    assert!(error.contains("3 | litsen = 1") && error.contains("^^^^^^"), "{error}");
    assert!(error.contains("expected one of `listen`"), "{error}");
}

#[test]
fn an_unknown_variable_or_flag_is_an_error_with_a_suggestion() {
    let error = fail(sources(None, &[("X_API_LITSEN", "1")], &[]));
    assert_eq!(error, "$X_API_LITSEN: there is no such setting; did you mean `X_API_LISTEN`?");
    let error = fail(sources(None, &[], &[("something", "1")]));
    assert_eq!(error, "--something: there is no such setting");
}

#[test]
fn a_wrong_value_names_its_origin_and_key() {
    let error = fail(sources(None, &[("X_API_MAX_BODY", "lots")], &[]));
    assert_eq!(error, "$X_API_MAX_BODY: `lots` is not a value for `api.max_body`: use a number");
    let error = fail(sources(None, &[], &[("api.listen", "nowhere")]));
    assert!(
        error.starts_with("--api-listen: `nowhere` is not a value for `api.listen`: "),
        "{error}"
    );
    let error = fail(sources(Some("[api]\nmax_body = -1\n"), &[], &[]));
    assert!(error.contains("line 2, column 12"), "{error}");
}

#[test]
fn lists_and_tables_can_be_written_without_quotes() {
    let loaded = load::<Sample>(sources(
        None,
        &[("X_API_TOKENS", "a, b"), ("X_IMAGES", "{ x = [\"y\"] }"), ("X_STATE", "/tmp")],
        &[("api.tokens", "[\"c\"]")],
    ))
    .unwrap();
    assert_eq!(loaded.value.api.tokens, ["c"]);
    assert_eq!(loaded.value.images["x"], ["y"]);
    assert_eq!(loaded.value.state.as_deref(), Some("/tmp"));
}
