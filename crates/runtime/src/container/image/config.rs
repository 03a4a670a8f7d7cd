//! An image's configuration: what is run, as whom, and how it is stopped.

use std::collections::BTreeMap;

use dirigent_core::Digest;
use serde::{Deserialize, Serialize};

use super::ImageError;

/// The configuration of an image, of which the rest is history.
#[derive(Debug, Deserialize)]
pub(in crate::container) struct Config {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<Runs>,
    rootfs: Root,
}

#[derive(Debug, Deserialize)]
struct Root {
    diff_ids: Vec<Digest>,
}

/// What of an image's configuration is about running it. Health checks are not among them: a sandbox is ready
/// when it listens.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Runs {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

/// What is run, settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::container) struct Program {
    /// Entry point and command.
    pub(in crate::container) command: Vec<String>,
    pub(in crate::container) env: BTreeMap<String, String>,
    pub(in crate::container) directory: String,
    pub(in crate::container) user: User,
    /// The number of the signal that stops it.
    pub(in crate::container) stop_signal: i32,
    /// Whether it has a `/tmp`.
    pub(in crate::container) has_tmp: bool,
}

/// Whom it runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::container) struct User {
    pub(in crate::container) uid: u32,
    pub(in crate::container) gid: u32,
    pub(in crate::container) groups: Vec<u32>,
}

/// What was seen in the layers that the configuration needs to be understood.
#[derive(Debug, Default)]
pub(in crate::container) struct Seen {
    pub(in crate::container) passwd: Option<String>,
    pub(in crate::container) group: Option<String>,
    pub(in crate::container) has_tmp: bool,
}

/// What this machine is called in images.
pub(in crate::container) const fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

impl Config {
    pub(in crate::container) fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        let config: Self = serde_json::from_slice(bytes)
            .map_err(|error| ImageError::Format(format!("its configuration: {error}")))?;
        let Self { os, architecture: arch, .. } = &config;
        let is_ours = |value: &str, ours| value.is_empty() || value == ours;
        if !is_ours(os, "linux") || !is_ours(arch, architecture()) {
            return Err(ImageError::Refused(format!(
                "it is for {os}/{arch}, and this worker is linux/{}",
                architecture()
            )));
        }
        Ok(config)
    }

    /// What each layer must unpack to.
    pub(in crate::container) fn layers(&self) -> &[Digest] {
        &self.rootfs.diff_ids
    }

    pub(in crate::container) fn program(self, seen: &Seen) -> Result<Program, ImageError> {
        let runs = self.config.unwrap_or_default();
        let command = [runs.entrypoint, runs.cmd].into_iter().flatten().flatten().collect();
        let pair = |line: String| {
            let (name, value) = line.split_once('=').unwrap_or((&line, ""));
            (name.to_owned(), value.to_owned())
        };
        let directory = runs.working_dir.filter(|dir| !dir.is_empty());
        let stop_signal = runs.stop_signal.filter(|signal| !signal.is_empty());
        Ok(Program {
            command,
            env: runs.env.unwrap_or_default().into_iter().map(pair).collect(),
            directory: directory.unwrap_or_else(|| "/".to_owned()),
            user: user(runs.user.as_deref().unwrap_or_default(), seen)?,
            stop_signal: match stop_signal {
                None => libc::SIGTERM,
                Some(name) => signal(&name).ok_or_else(|| {
                    ImageError::Refused(format!("there is no signal {name:?} to stop it with"))
                })?,
            },
            has_tmp: seen.has_tmp,
        })
    }
}

/// `user[:group]`, each by name or number. A name that its own files do not have is a mistake that no
/// program would survive as somebody else.
fn user(text: &str, seen: &Seen) -> Result<User, ImageError> {
    let (name, group) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (text, None),
    };
    let unknown = |what: &str, name: &str, file: &str| {
        ImageError::Refused(format!("it runs as {what} {name:?}, which its {file} does not have"))
    };
    let lines = |file: &Option<String>| -> Vec<Vec<String>> {
        let text = file.as_deref().unwrap_or_default();
        text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect()
    };
    let number = |fields: &[String], at: usize| fields.get(at)?.parse::<u32>().ok();
    let passwd = lines(&seen.passwd);
    let groups = lines(&seen.group);
    let name = if name.is_empty() { "0" } else { name };
    let entry = passwd.iter().find(|fields| {
        fields.first().is_some_and(|first| first == name)
            || name.parse().ok().is_some_and(|uid: u32| number(fields, 2) == Some(uid))
    });
    let uid = match (name.parse::<u32>(), entry) {
        (Ok(uid), _) => uid,
        (Err(_name), Some(fields)) => {
            number(fields, 2).ok_or_else(|| unknown("user", name, "/etc/passwd"))?
        }
        (Err(_name), None) => return Err(unknown("user", name, "/etc/passwd")),
    };
    let gid = match group {
        None => entry.and_then(|fields| number(fields, 3)).unwrap_or(0),
        Some(group) => match group.parse::<u32>() {
            Ok(gid) => gid,
            Err(_name) => groups
                .iter()
                .find(|fields| fields.first().is_some_and(|first| first == group))
                .and_then(|fields| number(fields, 2))
                .ok_or_else(|| unknown("group", group, "/etc/group"))?,
        },
    };
    // Further groups go by the name, and only if no group was chosen, as everywhere.
    let own = entry.and_then(|fields| fields.first()).filter(|_| group.is_none());
    let mut further: Vec<u32> = groups
        .iter()
        .filter(|fields| {
            let members = fields.get(3).map_or("", String::as_str);
            own.is_some_and(|own| members.split(',').any(|member| member == own))
        })
        .filter_map(|fields| number(fields, 2))
        .filter(|further| *further != gid)
        .collect();
    further.sort_unstable();
    further.dedup();
    Ok(User { uid, gid, groups: further })
}

/// A signal by number or name, with or without `SIG`.
fn signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        // The C library keeps the first two for itself.
        let offset = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse().ok()? };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    Some(match name {
        "HUP" => libc::SIGHUP,
        "INT" => libc::SIGINT,
        "QUIT" => libc::SIGQUIT,
        "ABRT" => libc::SIGABRT,
        "KILL" => libc::SIGKILL,
        "USR1" => libc::SIGUSR1,
        "USR2" => libc::SIGUSR2,
        "PIPE" => libc::SIGPIPE,
        "ALRM" => libc::SIGALRM,
        "TERM" => libc::SIGTERM,
        "CONT" => libc::SIGCONT,
        "WINCH" => libc::SIGWINCH,
        "PWR" => libc::SIGPWR,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        Seen {
            passwd: Some(
                "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n".to_owned(),
            ),
            group: Some("root:x:0:\napp:x:1001:\naudio:x:29:app,other\nweb:x:33:app\n".to_owned()),
            has_tmp: true,
        }
    }

    fn who(text: &str) -> Result<(u32, u32, Vec<u32>), String> {
        let found = user(text, &seen()).map_err(|error| error.to_string())?;
        Ok((found.uid, found.gid, found.groups))
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        assert_eq!(who(""), Ok((0, 0, vec![])));
        assert_eq!(who("app"), Ok((1000, 1001, vec![29, 33])));
        assert_eq!(who("1000"), Ok((1000, 1001, vec![29, 33])));
        assert_eq!(who("app:web"), Ok((1000, 33, vec![])));
        assert_eq!(who("4321"), Ok((4321, 0, vec![])));
        assert_eq!(who("4321:55"), Ok((4321, 55, vec![])));
        assert!(who("nobody").unwrap_err().contains("\"nobody\""));
        assert!(who("app:nogroup").unwrap_err().contains("/etc/group"));
    }

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal("SIGQUIT"), Some(3));
        assert_eq!(signal("term"), Some(15));
        assert_eq!(signal("SIGRTMIN+3"), Some(37));
        assert_eq!(signal("9"), Some(9));
        for bad in ["0", "65", "SIGNOTHING", "RTMIN-1", ""] {
            assert_eq!(signal(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_configuration_is_read_and_what_is_missing_has_its_default() {
        let bytes = br#"{"architecture":"","os":"linux","config":{"Cmd":["a","b"],
            "Entrypoint":["e"],"Env":["A=1=2","B"],"StopSignal":"SIGUSR1","User":"app",
            "Healthcheck":{"Test":["CMD","false"]}},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        let program = Config::parse(bytes).unwrap().program(&seen()).unwrap();
        assert_eq!(program.command, ["e", "a", "b"]);
        assert_eq!(program.env["A"], "1=2");
        assert_eq!(program.env["B"], "");
        assert_eq!((program.directory.as_str(), program.stop_signal), ("/", libc::SIGUSR1));
        let empty = br#"{"rootfs":{"diff_ids":[]}}"#;
        let program = Config::parse(empty).unwrap().program(&Seen::default()).unwrap();
        assert_eq!((program.command.len(), program.stop_signal), (0, libc::SIGTERM));
    }

    #[test]
    fn images_for_other_machines_are_refused_with_both_names() {
        let other = br#"{"architecture":"s390x","os":"linux","rootfs":{"diff_ids":[]}}"#;
        let error = Config::parse(other).unwrap_err().to_string();
        assert!(error.contains("linux/s390x") && error.contains(architecture()), "{error}");
    }
}
