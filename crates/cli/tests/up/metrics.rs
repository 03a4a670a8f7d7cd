//! The page for Prometheus, as a running Dirigent serves it.

use std::{collections::BTreeMap, fmt::Write as _};

use dirigent_service::reference::check;

use crate::{hello, host::Up, path};

/// Name -> type, unit, help.
fn families(page: &str) -> BTreeMap<String, [String; 3]> {
    let mut families: BTreeMap<String, [String; 3]> = BTreeMap::new();
    for line in page.lines() {
        for (place, mark) in ["# TYPE ", "# UNIT ", "# HELP "].into_iter().enumerate() {
            let Some((name, text)) = line.strip_prefix(mark).and_then(|l| l.split_once(' ')) else {
                continue;
            };
            families.entry(name.to_owned()).or_default()[place] = text.to_owned();
        }
    }
    families
}

#[test]
fn the_reference_page_shows_every_metric() {
    let up = Up::start(&[]);
    // A kind of metric is on the page once there is one: after a cold start, and a failed start.
    up.body("hello", "/");
    let (code, ..) = up.cli(&["deploy", "--name", "broken", "--command", "false"]);
    assert_eq!(code, 1, "it does not start");
    let dir = hello("other", "");
    up.ok(&["deploy", path(&dir)]);
    let mut page = String::new();
    up.until("a failed start is counted", || {
        page = up.metrics();
        page.contains("dirigent_control_sandbox_start_failures_total")
    });
    let mut table = "| Metric | Type | Unit | Means |\n|---|---|---|---|\n".to_owned();
    for (name, [kind, unit, help]) in families(&page) {
        assert!(name.starts_with("dirigent_") && !help.is_empty(), "{name}: {help}");
        // The unit is the name's end, also where the registry was not told of it.
        let known = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(unit));
        let unit = known.unwrap_or(&unit);
        let help = help.trim_end_matches('.');
        writeln!(table, "| `{name}` | {kind} | {unit} | {help} |").unwrap();
    }
    assert_eq!(check("reference/metrics.md", "metrics", &table), Ok(()));
}
