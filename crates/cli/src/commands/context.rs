//! `context`: which cluster the other verbs talk to.

use std::{fs, path::PathBuf};

use serde_json::json;

use crate::{
    args::{AddContextArgs, ContextCommand},
    client::Place,
    context::{Context, Contexts, path, unknown},
    fail::{Fail, Kind, OrFail as _, Result},
    printer::Printer,
};

pub(super) fn context(command: ContextCommand, printer: Printer) -> Result {
    let path = path(|name| std::env::var_os(name)).ok_or_else(|| {
        Fail::config("it is not known where contexts are kept")
            .hint("set HOME, or DIRIGENT_CONTEXTS to a file's name")
    })?;
    let mut contexts = Contexts::read(&path)?;
    match command {
        ContextCommand::Add(args) => {
            let (name, context) = new(args)?;
            contexts.current.get_or_insert_with(|| name.clone());
            contexts.contexts.insert(name, context);
        }
        ContextCommand::Use { name } => {
            if !contexts.contexts.contains_key(&name) {
                return Err(unknown(&name));
            }
            contexts.current = Some(name);
        }
        ContextCommand::Remove { name } => {
            if contexts.contexts.remove(&name).is_none() {
                return Err(unknown(&name));
            }
            contexts.current.take_if(|current| *current == name);
        }
        ContextCommand::List => return list(&contexts, printer),
    }
    contexts.write(&path)
}

fn new(args: AddContextArgs) -> Result<(String, Context)> {
    let AddContextArgs { name, server, functions, ca, token_file, token } = args;
    let read = |path: &PathBuf| {
        fs::read_to_string(path).or_fail(Kind::Config, || format!("cannot read {}", path.display()))
    };
    for url in [Some(&server), functions.as_ref()].into_iter().flatten() {
        Place::parse(url)?;
    }
    let token = match &token_file {
        Some(path) => Some(read(path)?.trim().to_owned()),
        None => token,
    };
    let ca = ca.as_ref().map(read).transpose()?;
    let context = Context { server, functions, token, ca };
    // Told now, not at the first use.
    context.trust()?;
    Ok((name, context))
}

fn list(contexts: &Contexts, printer: Printer) -> Result {
    let current = contexts.current.as_deref();
    if printer.is_json() {
        return contexts.contexts.iter().try_for_each(|(name, context)| {
            printer.json(&json!({
                "name": name,
                "current": current == Some(name),
                "server": context.server,
                "functions": context.functions,
            }))
        });
    }
    let rows = contexts.contexts.iter().map(|(name, context)| {
        let mark = if current == Some(name) { "*" } else { "" };
        let functions = context.functions.clone().unwrap_or_else(|| "-".to_owned());
        vec![mark.to_owned(), name.clone(), context.server.clone(), functions]
    });
    printer.table(&["", "NAME", "SERVER", "FUNCTIONS"], rows.collect())
}
