//! The pages of reference that are made from this crate's configuration and the manifest.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use dirigent_core::manifest::Manifest;
use dirigent_service::{
    config::{Key, Kind, Loaded, Sources, keys, load, variable},
    reference::{check, documented},
};
use http::StatusCode;

use crate::config::{Config, PREFIX, every_flag};

const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Bool => "`true` or `false`",
        Kind::Number => "number",
        Kind::Text => "text",
        Kind::List => "list",
        Kind::Table => "table",
    }
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

/// The doc comment of a key; `sections` are the structs of its tables, `""` that of the root.
fn meaning(source: &str, sections: &[(&str, &str)], key: &str) -> String {
    let (section, field) = key.rsplit_once('.').unwrap_or(("", key));
    let item = sections.iter().find(|(name, _)| *name == section).map(|(_, item)| *item);
    let item = item.unwrap_or_else(|| panic!("no struct is known for the keys of `{section}`"));
    let found = documented(source, item).into_iter().find(|(name, _)| name == field);
    let text = found.map(|(_, text)| text).unwrap_or_default();
    assert!(!text.is_empty(), "`{key}` has no doc comment");
    text
}

#[test]
fn the_reference_page_shows_every_key_of_the_configuration() {
    let defaults: Loaded<Config> = load(Sources::default()).unwrap();
    let (settings, flags) = (defaults.settings().unwrap(), every_flag());
    let sections = [
        ("", "Config"),
        ("limits", "LimitsConfig"),
        ("containerd", "ContainerdConfig"),
        ("compat", "CompatConfig"),
    ];
    let mut table = "| Key | Type | Default | Variable | Flag | Means |\n".to_owned();
    table += "|---|---|---|---|---|---|\n";
    for Key { path, kind: shape } in keys::<Config>() {
        let default = settings.iter().find(|setting| setting.key == path).unwrap();
        let flag = flags.iter().find(|flag| flag.key == path);
        writeln!(
            table,
            "| `{path}` | {} | {} | `{}` | {} | {} |",
            kind(shape),
            code(&default.value),
            variable(PREFIX, &path),
            code(flag.map_or("", |flag| &flag.flag)),
            meaning(include_str!("config.rs"), &sections, &path),
        )
        .unwrap();
    }
    assert_eq!(check("reference/configuration.md", "keys", &table), Ok(()));
}

/// The smallest manifest.
fn smallest() -> Manifest {
    toml::from_str("name = \"thumbs\"\nsandbox.command = [\"python3\", \"app.py\"]").unwrap()
}

#[test]
fn the_reference_page_shows_every_key_of_the_manifest() {
    let values = toml::Table::try_from(smallest()).unwrap();
    let sections = [
        ("", "Manifest"),
        ("sandbox", "Sandbox"),
        ("resources", "ManifestResources"),
        ("scaling", "Scaling"),
        ("invocation", "Invocation"),
    ];
    let model = include_str!("../../core/src/model.rs");
    let mut table = "| Key | Type | Default | Means |\n|---|---|---|---|\n".to_owned();
    for Key { path, kind: shape } in keys::<Manifest>() {
        let mut parts = path.split('.');
        let first = parts.next().and_then(|name| values.get(name));
        let value = parts.fold(first, |value, name| value?.get(name));
        let default = match (path.as_str(), value) {
            ("name" | "sandbox.command" | "env", _) | (_, None) => String::new(),
            (_, Some(value)) => value.to_string(),
        };
        let mut text = meaning(include_str!("../../core/src/manifest.rs"), &sections, &path);
        // What is passed on as it is says where it is explained.
        if let Some((_, named)) = text.split_once("See [`") {
            let (item, field) = named.trim_end_matches("`].").split_once("::").unwrap();
            text = meaning(model, &[("", item)], field);
        }
        writeln!(table, "| `{path}` | {} | {} | {text} |", kind(shape), code(&default)).unwrap();
    }
    assert_eq!(check("reference/manifest.md", "keys", &table), Ok(()));
}

#[test]
fn the_reference_pages_example_has_the_defaults_that_it_says_it_has() {
    let page = include_str!("../../../docs/reference/manifest.md");
    let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let mut shown: Manifest = toml::from_str(example).unwrap();
    shown.clone().validate(None).unwrap();
    // Shown for what they may be; they have no default.
    shown.sandbox.port = None;
    shown.sandbox.isolation = None;
    shown.env.clear();
    assert_eq!(shown, smallest());
}

/// Status and code of an error.
type Errors = BTreeSet<(u16, String)>;

/// The number of a status, by its name in code such as `NOT_FOUND`.
fn status(name: &str) -> u16 {
    let named = |status: &StatusCode| {
        let reason = status.canonical_reason().unwrap_or_default();
        reason.to_uppercase().replace([' ', '-'], "_") == name
    };
    let mut all = (100..600).filter_map(|number| StatusCode::from_u16(number).ok());
    all.find(named).unwrap_or_else(|| panic!("no status is called {name}")).as_u16()
}

/// A source text without its tests, all white space made one space each.
fn words(source: &str) -> String {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    code.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn quoted(text: &str) -> Option<&str> {
    text.split('"').nth(1)
}

/// The errors in the table of a page that follows a heading.
fn shown(page: &str, heading: &str) -> Errors {
    let section = page.split(heading).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        Some((cells.next()?.parse::<u16>().ok()?, cells.next()?.to_owned()))
    });
    let codes = |(status, codes): (u16, String)| {
        let codes: Vec<_> = codes.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        codes.into_iter().map(move |code| (status, code))
    };
    rows.flat_map(codes).collect()
}

#[test]
fn the_reference_page_shows_every_error_of_the_api() {
    let mut made = Errors::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../control/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let source = words(&fs::read_to_string(path).unwrap());
            for rest in source.split("StatusCode::").skip(1) {
                let Some((name, rest)) = rest.split_once(", ") else { continue };
                if rest.starts_with('"') && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
                {
                    made.insert((status(name), quoted(rest).unwrap().to_owned()));
                }
            }
        }
    }
    assert!(made.len() > 15, "{made:?}");
    assert_eq!(shown(include_str!("../../../docs/reference/api.md"), "\n## Errors\n"), made);
}

#[test]
fn the_reference_page_shows_every_error_of_the_data_plane() {
    let source = words(include_str!("../../proxy/src/errors.rs"));
    let body = |begin: &str| {
        let (_, rest) = source.split_once(begin).unwrap();
        rest.split("} }").next().unwrap().to_owned()
    };
    let texts = body("fn text(self)");
    let arms = body("fn status(self)");
    let mut made = Errors::new();
    let mut named: Vec<&str> = Vec::new();
    for part in arms.split("Self::").skip(1) {
        named.push(part.split([' ', ',']).next().unwrap());
        let Some((_, answer)) = part.split_once("=> StatusCode::") else { continue };
        let answer = status(answer.split(',').next().unwrap());
        for name in named.drain(..) {
            let text = texts.split(&format!("Self::{name} => ")).nth(1).unwrap();
            made.insert((answer, quoted(text).unwrap().to_owned()));
        }
    }
    // What is answered before there is an invocation.
    let bare = body("match violation.status {");
    for arm in bare.split("), ").filter(|arm| arm.contains("=> (\"")) {
        let number = arm.split_whitespace().next().unwrap();
        made.insert((number.parse().unwrap_or(400), quoted(arm).unwrap().to_owned()));
    }
    assert!(made.len() >= 14, "{made:?}");
    let page = include_str!("../../../docs/concepts/invocations.md");
    assert_eq!(shown(page, "\n## Errors of the platform\n"), made);
}
