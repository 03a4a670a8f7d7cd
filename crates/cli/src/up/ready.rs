//! What `up` does when its roles run: makes sure that there is a function to call, and says what
//! can be done.

use std::{path::Path, time::Instant};

use dirigent_core::{FunctionName, RuntimeKind, control::Answer, name::DEFAULT_NAMESPACE};
use dirigent_runtime::Facts;
use http::Method;
use serde_json::json;

use super::{FUNCTIONS_FILE, remember, together::Roles};
use crate::{
    client::{Client, default_state},
    config::Config,
    fail::{Fail, Kind, OrFail as _, Result},
    format::duration,
    printer::Printer,
    project::built_in,
};

/// The function that is there from the beginning.
const HELLO: &str = "hello";

/// Writes where functions are called, and tells the user.
pub(super) fn announce(
    config: &Config,
    dir: &Path,
    roles: &Roles,
    begin: Instant,
    printer: Printer,
) -> Result {
    let functions = roles.proxy.address;
    remember(&dir.join(FUNCTIONS_FILE), &format!("http://{functions}\n"))?;
    if printer.is_json() {
        return printer.json(&report(dir, roles, begin));
    }
    for line in lines(config, dir, roles, begin) {
        printer.problem(&line);
    }
    Ok(())
}

/// Deploys `hello` if it is not there. Through the API, as a user would: there is no other way.
pub(super) async fn hello(config: &Config, dir: &Path, api: &str) -> Result {
    let name = FunctionName::new(DEFAULT_NAMESPACE, HELLO)
        .or_fail(Kind::Internal, || "`hello` is a name")?;
    let client = Client::find(Some(api), dir, None)?;
    let path = crate::commands::path(&name);
    let known = client.try_send(Method::GET, &path, crate::client::full(bytes::Bytes::new()));
    if known.await?.status().is_success() {
        return Ok(());
    }
    let mut manifest = built_in(name, HELLO);
    manifest.sandbox.runtime = config.runtime;
    // Without a check: the first call starts it, and `up` is ready at once.
    let put = json!({ "manifest": manifest, "artifact": null });
    match client.call(Method::PUT, &format!("{path}?check=false&wait=false"), Some(&put)).await? {
        Answer::Deployed { .. } => Ok(()),
        other => Err(Fail::internal(format!("`hello` was not deployed: {other:?}"))),
    }
}

fn report(dir: &Path, roles: &Roles, begin: Instant) -> serde_json::Value {
    let facts = |facts: &Facts| {
        json!({
            "runtime": facts.kind,
            "isolation": facts.best,
            "usual_isolation": facts.usual,
            "missing": facts.missing,
        })
    };
    let runtimes: Vec<_> = roles.worker.facts.iter().map(facts).collect();
    json!({
        "functions": format!("http://{}", roles.proxy.address),
        "api": roles.control.api_url(),
        "state": dir,
        "pid": std::process::id(),
        "runtimes": runtimes,
        "adopted": roles.worker.adopted,
        "ready_ms": u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// What is printed when it is ready.
fn lines(config: &Config, dir: &Path, roles: &Roles, begin: Instant) -> Vec<String> {
    let functions = roles.proxy.address;
    let port = functions.port();
    let mut lines = vec![
        format!("Dirigent is ready ({})", duration(begin.elapsed())),
        format!("  functions  http://{functions}  (each at http://NAME.localhost:{port}/)"),
        format!("  API        {}", roles.control.api_url()),
        format!("  state      {}", dir.display()),
    ];
    lines.extend(roles.worker.facts.iter().flat_map(facts));
    let absent = ABSENT.map(|kind| kind.to_string()).join(", ");
    lines.push(format!("  {absent}: this version does not have these runtimes"));
    let memory = roles.worker.capacity.memory.0;
    lines.push(format!(
        "  capacity   {} of memory, {} sandboxes at most",
        crate::format::bytes(memory),
        roles.worker.capacity.sandboxes
    ));
    if roles.worker.adopted > 0 {
        lines.push(format!("  adopted    {} sandboxes of an earlier life", roles.worker.adopted));
    }
    lines.push("Try:".to_owned());
    let usual = default_state(rustix::process::geteuid().is_root(), |name| std::env::var_os(name));
    if dir != usual {
        lines.push(format!("  export DIRIGENT_STATE={}", dir.display()));
    }
    if config.hello {
        lines.push(format!("  curl http://{HELLO}.localhost:{port}/"));
    }
    let dirigent = called();
    lines.push(if Path::new(EXAMPLE).is_dir() {
        format!("  {dirigent} deploy {EXAMPLE}  (needs python3)")
    } else {
        format!("  {dirigent} deploy DIR")
    });
    lines.push(format!("  {dirigent} list"));
    lines
}

/// Manifests may name them; this version has none.
const ABSENT: [RuntimeKind; 2] = [RuntimeKind::Wasm, RuntimeKind::Microvm];

/// In a checkout this folder can be deployed as it is.
const EXAMPLE: &str = "examples/hello-python";

/// What the user types to run this program again.
fn called() -> String {
    let name = "dirigent";
    let Ok(exe) = std::env::current_exe() else { return name.to_owned() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    // The first one found is the one that the shell runs.
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    if found.is_some_and(|file| file.canonicalize().is_ok_and(|file| file == exe)) {
        return name.to_owned();
    }
    let place = std::env::current_dir().unwrap_or_default();
    in_shell(&exe, &place)
}

/// A program's path as a shell takes it, short where it is below the current directory.
fn in_shell(exe: &Path, place: &Path) -> String {
    let short = exe.strip_prefix(place).ok().filter(|rest| rest.components().count() > 1);
    let text = short.unwrap_or(exe).display().to_string();
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c)) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// What a runtime can do, and what it cannot and why.
pub(crate) fn facts(facts: &Facts) -> Vec<String> {
    let kind = facts.kind.to_string();
    let first = match facts.usual {
        Some(level) if facts.best < facts.usual => format!(
            "  {kind:<10} works, isolation `{level}` without the following, so that it cannot be demanded"
        ),
        Some(level) => format!("  {kind:<10} works, isolation `{level}`"),
        None => format!("  {kind:<10} does not work here"),
    };
    let missing = facts.missing.iter().map(|line| format!("             {line}"));
    let mut lines: Vec<_> = std::iter::once(first).chain(missing).collect();
    if facts.usual == Some(dirigent_core::Isolation::Plain) {
        lines.push(
            "warning: `plain` isolation holds against accidents only: run nobody else's code"
                .to_owned(),
        );
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_named_so_that_a_shell_finds_it() {
        let named = |exe: &str, place: &str| in_shell(Path::new(exe), Path::new(place));
        let exe = "/home/me/dirigent/target/release/dirigent";
        assert_eq!(named(exe, "/home/me/dirigent"), "target/release/dirigent");
        assert_eq!(named(exe, "/home/you"), exe);
        // Without a slash the shell would look on its path.
        assert_eq!(named("/opt/dirigent", "/opt"), "/opt/dirigent");
        assert_eq!(named("/my files/it's/dirigent", "/"), "'my files/it'\\''s/dirigent'");
    }

    #[test]
    fn this_program_is_not_the_one_on_the_path() {
        assert!(called().contains('/'), "{}", called());
    }
}
