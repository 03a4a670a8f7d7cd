//! Configuration: defaults < a TOML file < environment variables < flags. Each value remembers
//! where it came from, and an unknown key is an error wherever it is written.
//!
//! Nothing here reads the process: the file's text, the variables and the flags are arguments. `T`
//! is a struct of structs with `#[serde(default, deny_unknown_fields)]`; the variable of the key
//! `api.listen` is `PREFIX_API_LISTEN`.

mod shape;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

pub use shape::{Key, Kind, keys};

/// Where the values come from.
#[derive(Debug, Default)]
pub struct Sources<'a> {
    /// The file's name, for messages, and its text.
    pub file: Option<(&'a Path, &'a str)>,
    /// What the names of variables start with, such as `DIRIGENT_`.
    pub prefix: &'a str,
    /// The environment: names that do not start with the prefix are ignored.
    pub env: Vec<(String, String)>,
    /// Names with the prefix that mean something else.
    pub reserved: &'a [&'a str],
    /// What flags say; a later one wins.
    pub flags: Vec<Flag>,
}

/// A value given by a flag.
#[derive(Clone, Debug)]
pub struct Flag {
    /// As the user wrote it, such as `--listen`.
    pub flag: String,
    /// The key that it sets.
    pub key: String,
    /// The value.
    pub value: String,
}

/// Where a value came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    #[default]
    Default,
    /// A line of the file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A variable.
    Env(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "${name}"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key's path.
    pub key: String,
    /// The value as TOML; empty if it is not set.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

/// A configuration and the origin of each of its values.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    /// The configuration.
    pub value: T,
    origins: BTreeMap<String, Origin>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file has an error; the message has line and caret.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong where.
        message: String,
    },
    /// No key has this name.
    #[error("{origin}: there is no such setting{}", suggestion(nearest.as_deref()))]
    Unknown {
        /// Who said it.
        origin: Origin,
        /// What may have been meant.
        nearest: Option<String>,
    },
    /// The value is not one for this key.
    #[error("{origin}: `{value}` is not a value for `{key}`: {message}")]
    Value {
        /// Who said it.
        origin: Origin,
        /// The key.
        key: String,
        /// What was said.
        value: String,
        /// What is wrong.
        message: String,
    },
    /// The values do not fit together.
    #[error("the configuration cannot be used: {message}")]
    Whole {
        /// What is wrong.
        message: String,
    },
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |nearest| format!("; did you mean `{nearest}`?"))
}

/// Read a configuration from all its sources.
///
/// # Errors
/// The first key or value that cannot be used, with its origin.
pub fn load<T: DeserializeOwned>(sources: Sources<'_>) -> Result<Loaded<T>, ConfigError> {
    let keys = keys::<T>();
    let mut merge = Merge { keys: &keys, values: Table::new(), origins: BTreeMap::new() };
    if let Some((path, text)) = sources.file {
        merge.file::<T>(path, text)?;
    }
    let variables: BTreeMap<String, &Key> =
        keys.iter().map(|key| (variable(sources.prefix, &key.path), key)).collect();
    let mut env = sources.env;
    env.retain(|(name, _)| {
        !sources.prefix.is_empty()
            && name.starts_with(sources.prefix)
            && !sources.reserved.contains(&name.as_str())
    });
    // Sorted, so that the first error does not depend on the order of the environment.
    env.sort();
    for (name, value) in env {
        let Some(key) = variables.get(&name) else {
            let nearest = nearest(&name, variables.keys().map(String::as_str));
            return Err(ConfigError::Unknown { origin: Origin::Env(name), nearest });
        };
        merge.set::<T>(key, &value, Origin::Env(name))?;
    }
    for Flag { flag, key, value } in sources.flags {
        let Some(key) = keys.iter().find(|known| known.path == key) else {
            let nearest = nearest(&key, keys.iter().map(|known| known.path.as_str()));
            return Err(ConfigError::Unknown { origin: Origin::Flag(flag), nearest });
        };
        merge.set::<T>(key, &value, Origin::Flag(flag))?;
    }
    let Merge { values, origins, .. } = merge;
    let value = T::deserialize(values)
        .map_err(|error| ConfigError::Whole { message: error.message().to_owned() })?;
    Ok(Loaded { value, origins })
}

impl<T: Serialize + DeserializeOwned> Loaded<T> {
    /// Every key with its value and origin, in the order of declaration.
    ///
    /// # Errors
    /// If the configuration cannot be written as TOML.
    pub fn settings(&self) -> Result<Vec<Setting>, ConfigError> {
        let values = Table::try_from(&self.value)
            .map_err(|error| ConfigError::Whole { message: error.to_string() })?;
        let setting = |key: Key| {
            let value = lookup(&values, &key.path).map_or_else(String::new, Value::to_string);
            let origin = self.origins.get(&key.path).cloned().unwrap_or_default();
            Setting { key: key.path, value, origin }
        };
        Ok(keys::<T>().into_iter().map(setting).collect())
    }
}

/// The variable that sets a key.
#[must_use]
pub fn variable(prefix: &str, key: &str) -> String {
    format!("{prefix}{}", key.replace(['.', '-'], "_").to_ascii_uppercase())
}

struct Merge<'a> {
    keys: &'a [Key],
    values: Table,
    origins: BTreeMap<String, Origin>,
}

impl Merge<'_> {
    fn file<T: DeserializeOwned>(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let wrong = |error: toml::de::Error| ConfigError::File {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        };
        // Checked alone first: only from the text itself does an error know its line.
        toml::from_str::<T>(text).map_err(wrong)?;
        self.values = toml::from_str(text).map_err(wrong)?;
        let table = DeTable::parse(text).map_err(wrong)?;
        self.lines("", table.get_ref(), &mut |start| Origin::File {
            path: path.to_owned(),
            line: text.get(..start).unwrap_or_default().matches('\n').count() + 1,
        });
        Ok(())
    }

    fn lines(&mut self, prefix: &str, table: &DeTable<'_>, at: &mut impl FnMut(usize) -> Origin) {
        for (name, value) in table {
            let path = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            if self.keys.iter().any(|key| key.path == path) {
                self.origins.insert(path, at(name.span().start));
            } else if let DeValue::Table(inner) = value.get_ref() {
                self.lines(&path, inner, at);
            }
        }
    }

    fn set<T: DeserializeOwned>(
        &mut self,
        key: &Key,
        text: &str,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        let wrong = |message: &str| ConfigError::Value {
            origin: origin.clone(),
            key: key.path.clone(),
            value: text.to_owned(),
            message: message.to_owned(),
        };
        let value = parse(key.kind, text).map_err(|error| wrong(&error))?;
        // Tried alone, so that the error is this value's.
        let mut alone = Table::new();
        insert(&mut alone, &key.path, value.clone());
        T::deserialize(alone).map_err(|error| wrong(error.message()))?;
        insert(&mut self.values, &key.path, value);
        self.origins.insert(key.path.clone(), origin);
        Ok(())
    }
}

/// A value as a person writes it outside a TOML file, where quotes are a nuisance.
fn parse(kind: Kind, text: &str) -> Result<Value, String> {
    let toml = |text: &str| {
        let table: Result<Table, _> = toml::from_str(&format!("value = {text}"));
        table.ok().and_then(|mut table| table.remove("value"))
    };
    match kind {
        Kind::Text => Ok(Value::String(text.to_owned())),
        Kind::Bool => match text {
            "1" | "true" | "yes" | "on" => Ok(Value::Boolean(true)),
            "0" | "false" | "no" | "off" => Ok(Value::Boolean(false)),
            _ => Err("use `true` or `false`".to_owned()),
        },
        Kind::Number => match toml(text) {
            Some(value @ (Value::Integer(_) | Value::Float(_))) => Ok(value),
            _ => Err("use a number".to_owned()),
        },
        Kind::List if text.trim_start().starts_with('[') => {
            toml(text).ok_or_else(|| "use a list such as [\"a\", \"b\"]".to_owned())
        }
        Kind::List => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
        }
        Kind::Table => match toml(text) {
            Some(value @ Value::Table(_)) => Ok(value),
            _ => Err("use a table such as { name = \"value\" }".to_owned()),
        },
    }
}

fn insert(table: &mut Table, path: &str, value: Value) {
    let Some((first, rest)) = path.split_once('.') else {
        table.insert(path.to_owned(), value);
        return;
    };
    let inner = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(inner) = inner {
        insert(inner, rest, value);
    }
}

fn lookup<'a>(table: &'a Table, path: &str) -> Option<&'a Value> {
    match path.split_once('.') {
        Some((first, rest)) => lookup(table.get(first)?.as_table()?, rest),
        None => table.get(path),
    }
}

/// The most similar of the names, if it is similar at all.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let (distance, found) = names.map(|other| (distance(name, other), other)).min()?;
    (distance * 3 <= name.len()).then(|| found.to_owned())
}

/// Edits between two texts.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let above = *cell;
            left = (diagonal + usize::from(x != y)).min(above + 1).min(left + 1);
            *cell = left;
            diagonal = above;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
