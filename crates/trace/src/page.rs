//! A page of a report that needs nothing from elsewhere.

use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = "
body{font:15px/1.5 system-ui,sans-serif;max-width:1300px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em}h2{font-size:1.1em;margin-top:2em}
table{border-collapse:collapse}td,th{padding:.25em .9em;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(480px,1fr));gap:1.5em}
.grid{stroke:#e4e4e4;stroke-width:1}.tick{font-size:10px;fill:#555}.label{font-size:11px;fill:#333}
.good{color:#17732f;font-weight:600}.bad{color:#b00020;font-weight:600}
@media(prefers-color-scheme:dark){body{background:#16181c;color:#ddd}.grid{stroke:#33363c}
.tick,.label{fill:#aaa}td,th{border-color:#33363c}}
";

/// The whole page around a body; what is of class `plots` is laid out side by side.
#[must_use]
pub fn page(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    };
    page.into_string()
}
