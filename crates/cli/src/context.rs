//! Contexts: clusters that the user's verbs can talk to, each by a name, in one file of the user's.
//!
//! The file holds tokens, so that only its owner may read it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use dirigent_service::{
    state::{atomic_write, private_dir},
    tls::Trust,
};
use serde::{Deserialize, Serialize};

use crate::fail::{Fail, Kind, OrFail as _, Result};

/// A cluster as the user's verbs reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// The API's URL.
    pub(crate) server: String,
    /// Where functions are called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) functions: Option<String>,
    /// A token of the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    /// Certificates of the authorities to trust, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<String>,
}

impl Context {
    /// Whom to trust there, if that is not whom everybody trusts.
    pub(crate) fn trust(&self) -> Result<Option<Trust>> {
        let trust = self.ca.as_deref().map(Trust::pem).transpose();
        trust.or_fail(Kind::Config, || "the context's authority cannot be used")
    }
}

/// All contexts of a user.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Contexts {
    /// The one that is used if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    pub(crate) contexts: BTreeMap<String, Context>,
}

/// Where they are kept.
pub(crate) fn path(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("DIRIGENT_CONTEXTS").or_else(|| {
        let dir = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
        Some(dir?.join("dirigent/contexts.toml"))
    })
}

impl Contexts {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text)
                .or_fail(Kind::Config, || format!("cannot use {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => {
                Err(error).or_fail(Kind::Config, || format!("cannot read {}", path.display()))
            }
        }
    }

    pub(crate) fn write(&self, path: &Path) -> Result {
        let text = toml::to_string(self).or_fail(Kind::Internal, || "contexts as TOML")?;
        let written = path
            .parent()
            .map_or(Ok(()), private_dir)
            .and_then(|()| atomic_write(path, text.as_bytes(), 0o600));
        written.or_fail(Kind::Unavailable, || "the contexts cannot be kept")
    }

    /// The one of this name, which there must be, or the current one, which there need not.
    pub(crate) fn chosen(&self, name: Option<&str>) -> Result<Option<&Context>> {
        let Some(name) = name.or(self.current.as_deref()) else { return Ok(None) };
        let found = self.contexts.get(name);
        found.map(Some).ok_or_else(|| unknown(name))
    }
}

/// The context of this name, or the current one, from the user's file.
pub(crate) fn chosen(name: Option<&str>) -> Result<Option<Context>> {
    match (path(|name| std::env::var_os(name)), name) {
        (Some(path), name) => Ok(Contexts::read(&path)?.chosen(name)?.cloned()),
        (None, Some(name)) => Err(unknown(name)),
        (None, None) => Ok(None),
    }
}

pub(crate) fn unknown(name: &str) -> Fail {
    Fail::config(format!("there is no context `{name}`"))
        .hint("`dirigent context list` shows those there are, `dirigent context add` makes one")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn contexts_are_kept_for_their_owner_and_the_current_one_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/contexts.toml");
        let mut contexts = Contexts::read(&path).unwrap();
        assert_eq!(contexts.chosen(None).unwrap(), None);
        let context = Context { server: "https://x:1".to_owned(), ..Context::default() };
        contexts.contexts.insert("prod".to_owned(), context.clone());
        contexts.write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut contexts = Contexts::read(&path).unwrap();
        assert_eq!(contexts.chosen(None).unwrap(), None);
        assert_eq!(contexts.chosen(Some("prod")).unwrap(), Some(&context));
        assert_eq!(contexts.chosen(Some("x")).unwrap_err().kind(), Kind::Config);
        contexts.current = Some("prod".to_owned());
        assert_eq!(contexts.chosen(None).unwrap(), Some(&context));
        fs::write(&path, "current = 1").unwrap();
        assert_eq!(Contexts::read(&path).unwrap_err().kind(), Kind::Config);
    }

    #[test]
    fn the_file_is_the_users() {
        let env = |all: &'static [(&str, &str)]| {
            path(move |name| all.iter().find(|(key, _)| *key == name).map(|(_, v)| v.into()))
        };
        assert_eq!(env(&[]), None);
        let home = env(&[("HOME", "/home/me")]);
        assert_eq!(home, Some("/home/me/.config/dirigent/contexts.toml".into()));
        let config = env(&[("XDG_CONFIG_HOME", "/c"), ("HOME", "/home/me")]);
        assert_eq!(config, Some("/c/dirigent/contexts.toml".into()));
        assert_eq!(env(&[("DIRIGENT_CONTEXTS", "/x"), ("HOME", "/h")]), Some("/x".into()));
    }
}
