//! The etcd that control planes share, as it is configured.

use std::path::Path;

use dirigent_control::store::etcd::EtcdConfig;
use dirigent_service::tls::Foreign;

use crate::fail::{Fail, Kind, OrFail as _, Result};

/// What is said of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said<'a> {
    pub(crate) members: &'a [String],
    pub(crate) prefix: &'a str,
    pub(crate) ca: Option<&'a Path>,
    pub(crate) cert: Option<&'a Path>,
    pub(crate) key: Option<&'a Path>,
}

/// What is said of it, if it fits together and the files can be used.
pub(crate) fn configured(said: Said<'_>) -> Result<EtcdConfig> {
    let Said { members, prefix, ca, cert, key } = said;
    let encrypted = members.iter().filter(|member| member.starts_with("https://")).count();
    if encrypted != 0 && encrypted != members.len() {
        let text = "etcd: some members are met by https://, others are not";
        return Err(Fail::config(text).hint("say https:// for all of them"));
    }
    let own = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) => {
            let text = "etcd_cert: without etcd_key it is of no use";
            return Err(Fail::config(text).hint("name the file with its key with --etcd-key"));
        }
        (None, Some(_)) => {
            let text = "etcd_key: without etcd_cert it is of no use";
            return Err(Fail::config(text).hint("name its certificate with --etcd-cert"));
        }
    };
    let tls = match ca {
        None if encrypted > 0 => {
            return Err(Fail::config("etcd: https:// needs etcd_ca").hint(
                "name the file with the certificate of the authority that signed etcd's with --etcd-ca",
            ));
        }
        None if own.is_some() => {
            return Err(Fail::config("etcd_cert: it is shown to nobody without etcd_ca").hint(
                "name the certificate of etcd's authority with --etcd-ca, and its members by https://",
            ));
        }
        None => None,
        Some(_) if encrypted == 0 => {
            return Err(Fail::config("etcd_ca: no member of etcd is met by https://")
                .hint("--etcd https://HOST:PORT"));
        }
        Some(ca) => {
            let tls = Foreign::open(ca, own);
            Some(tls.or_fail(Kind::Config, || "what etcd is known by, or knows us by")?)
        }
    };
    Ok(EtcdConfig { members: members.to_vec(), tls, prefix: prefix.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_together_is_told_with_what_to_do() {
        let told = |members: &[&str], [ca, cert, key]: [Option<&str>; 3]| {
            let members: Vec<String> = members.iter().map(|it| (*it).to_owned()).collect();
            let [ca, cert, key] = [ca, cert, key].map(|path| path.map(Path::new));
            let said = Said { members: &members, prefix: "/x", ca, cert, key };
            configured(said).map_err(|fail| fail.lines().join("\n"))
        };
        let x = Some("/nonexistent/x");
        let (http, https) = ("http://h:1", "https://h:1");
        assert_eq!(told(&[http], [None; 3]).unwrap().tls, None);
        let none = [None; 3];
        let cases = [
            (&[http, https][..], [x, None, None], "say https:// for all"),
            (&[https], none, "--etcd-ca"),
            (&[http], [x, None, None], "--etcd https://"),
            (&[https], [x, x, None], "--etcd-key"),
            (&[https], [x, None, x], "--etcd-cert"),
            (&[http], [None, x, x], "--etcd-ca"),
            (&[https], [x, None, None], "/nonexistent/x cannot be used"),
        ];
        for (members, files, meant) in cases {
            let error = told(members, files).unwrap_err();
            assert!(error.contains(meant), "{error}");
        }
    }
}
