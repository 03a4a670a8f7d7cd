//! The check of the target `manifests`.

use dirigent_core::manifest::Manifest;

/// A manifest is refused, or what it says can be written and is then read as the same.
pub(crate) fn read(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(manifest) = toml::from_str::<Manifest>(text) else { return };
    if manifest.clone().validate(None).is_err() {
        return;
    }
    let written = toml::to_string(&manifest).expect("what is valid can be written");
    let again: Manifest = toml::from_str(&written).expect("what was written can be read");
    assert_eq!(again, manifest, "{written}");
}
