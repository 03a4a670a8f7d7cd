use std::{path::Path, time::Duration};

use dirigent_service::tls::request;
use tempfile::TempDir;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn cluster() -> (TempDir, Membership) {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), "c1", &["localhost".to_owned()], LIFE).unwrap();
    let membership = open(dir.path());
    (dir, membership)
}

fn open(dir: &Path) -> Membership {
    Membership::open(dir, LIFE).unwrap().unwrap()
}

/// The secret of a token.
fn secret_of(token: &str) -> &str {
    token.rsplit('.').next().unwrap()
}

fn join(membership: &Membership, token: &str, name: &str) -> Result<Certificate, MembershipError> {
    let (_, request) = request().unwrap();
    let joined = membership.join(secret_of(token), name, &[], &request)?;
    Ok(Certificate::of_pem(&joined.certificate).unwrap())
}

#[test]
fn a_cluster_is_made_once_and_its_keys_are_for_their_owner() {
    use std::os::unix::fs::PermissionsExt as _;
    let (dir, membership) = cluster();
    assert!(membership.signs());
    for file in ["ca.key", "control-plane.pem", "members.json"] {
        let path = folder(dir.path()).join(file);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{file}");
    }
    let again = init(dir.path(), "c1", &[], LIFE).unwrap_err();
    assert!(matches!(again, MembershipError::Exists { .. }), "{again}");
    let empty = tempfile::tempdir().unwrap();
    assert!(Membership::open(empty.path(), LIFE).unwrap().is_none());
}

#[test]
fn a_join_token_is_good_once_for_its_role_and_its_name_and_its_time() {
    let (dir, membership) = cluster();
    let token = membership.invite(Role::Worker, None, HOUR, false).unwrap();
    let kept = fs::read_to_string(folder(dir.path()).join("members.json")).unwrap();
    assert!(!kept.contains(secret_of(&token)), "only its hash is kept");
    assert!(matches!(join(&membership, "x", "w1"), Err(MembershipError::Token)));
    assert!(matches!(join(&membership, &token, "-"), Err(MembershipError::Member(_))));
    let certificate = join(&membership, &token, "w1").unwrap();
    let member = membership.admit(&certificate).unwrap();
    assert_eq!((member.role, member.name()), (Role::Worker, "w1"));
    assert!(matches!(join(&membership, &token, "w2"), Err(MembershipError::Token)), "used");

    let late = membership.invite(Role::Worker, None, Duration::ZERO, true).unwrap();
    assert!(matches!(join(&membership, &late, "w2"), Err(MembershipError::Token)), "late");
    let many = membership.invite(Role::DataPlane, None, HOUR, true).unwrap();
    assert!(many.starts_with("data-plane."));
    for name in ["d1", "d2"] {
        join(&membership, &many, name).unwrap();
    }
    assert!(matches!(join(&membership, &many, "d1"), Err(MembershipError::Taken { .. })));
    let named = membership.invite(Role::Worker, Some("w3"), HOUR, false).unwrap();
    assert!(matches!(join(&membership, &named, "w4"), Err(MembershipError::Name { .. })));
    join(&membership, &named, "w3").unwrap();
    let names: Vec<_> = membership.list().unwrap().into_iter().map(|one| one.name).collect();
    assert_eq!(names, ["c1", "d1", "d2", "w1", "w3"]);
}

#[test]
fn who_was_removed_or_replaced_is_refused_also_by_the_next_life() {
    let (dir, membership) = cluster();
    let many = membership.invite(Role::Worker, None, HOUR, true).unwrap();
    let removed = join(&membership, &many, "w1").unwrap();
    let replaced = join(&membership, &many, "w2").unwrap();
    let mut changes = membership.changes();
    changes.mark_unchanged();
    membership.remove(&Member::new(Role::Worker, "w1").unwrap()).unwrap();
    assert!(changes.has_changed().unwrap());
    let named = membership.invite(Role::Worker, Some("w2"), HOUR, false).unwrap();
    let second = join(&membership, &named, "w2").unwrap();
    let nobody = Member::new(Role::Worker, "w9").unwrap();
    assert!(matches!(membership.remove(&nobody), Err(MembershipError::Unknown { .. })));
    let next = open(dir.path());
    for membership in [membership, next] {
        for refused in [&removed, &replaced] {
            let error = membership.admit(refused).unwrap_err();
            assert!(matches!(error, MembershipError::Refused { .. }), "{error}");
            let (_, request) = request().unwrap();
            assert!(membership.renew(refused, &request).is_err());
        }
        membership.admit(&second).unwrap();
    }
}

#[test]
fn a_renewed_certificate_names_the_same_member_and_the_old_one_goes_on() {
    let (_dir, membership) = cluster();
    let token = membership.invite(Role::Worker, None, HOUR, false).unwrap();
    let first = join(&membership, &token, "w1").unwrap();
    let (_, asked) = request().unwrap();
    let second = Certificate::of_pem(&membership.renew(&first, &asked).unwrap()).unwrap();
    assert_eq!(first.uri, second.uri);
    assert_ne!(first.serial, second.serial);
    for certificate in [&first, &second] {
        membership.admit(certificate).unwrap();
    }
    // Not for ever.
    let refused = (0..100).find_map(|_| membership.renew(&second, &asked).err()).unwrap();
    assert!(matches!(refused, MembershipError::Full { .. }), "{refused}");
    let stranger = Certificate { uri: Some("dirigent://0/worker/w1".to_owned()), ..second };
    assert!(membership.admit(&stranger).is_err());
}

#[test]
fn a_control_plane_without_the_key_signs_nothing() {
    let (dir, membership) = cluster();
    let token = membership.invite(Role::Worker, None, HOUR, false).unwrap();
    let certificate = join(&membership, &token, "w1").unwrap();
    fs::remove_file(folder(dir.path()).join("ca.key")).unwrap();
    let other = open(dir.path());
    other.admit(&certificate).unwrap();
    assert!(matches!(join(&other, &token, "w2"), Err(MembershipError::NoAuthority)));
    let (_, request) = request().unwrap();
    assert!(matches!(other.renew(&certificate, &request), Err(MembershipError::NoAuthority)));
    assert!(matches!(other.list(), Err(MembershipError::NoAuthority)));
}

#[test]
fn a_certificate_of_ones_own_is_renewed() {
    let (_dir, membership) = cluster();
    let first = membership.files().certificate();
    membership.renew_own().unwrap();
    let second = membership.files().certificate();
    assert_eq!(first.uri, second.uri);
    assert_ne!(first.serial, second.serial);
}

#[test]
fn who_joins_has_nobody_admitted_again_unless_somebody_has_to_leave() {
    let (_dir, membership) = cluster();
    let mut changes = membership.changes();
    let many = membership.invite(Role::Worker, None, HOUR, true).unwrap();
    join(&membership, &many, "w1").unwrap();
    for (name, refuses) in [("w2", false), ("w1", true)] {
        let named = membership.invite(Role::Worker, Some(name), HOUR, false).unwrap();
        join(&membership, &named, name).unwrap();
        assert_eq!(changes.has_changed().unwrap(), refuses, "{name}");
        changes.mark_unchanged();
    }
}
