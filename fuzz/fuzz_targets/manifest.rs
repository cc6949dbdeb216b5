//! Any bytes are a manifest or a typed error, in bounded steps. What was taken for a manifest is taken again when it is written.
//!
//! The digest of its own fields is put right in what is an object of JSON: no input would pass it.

#![no_main]

mod steps;

use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};
use snug::manifest::{Manifest, ManifestError};

const OWN_DIGEST: &str = "manifest-sha256";

fuzz_target!(|bytes: &[u8]| {
    let _ = steps::within(bytes.len(), || Manifest::parse(bytes));
    let Ok(mut document) = serde_json::from_slice::<serde_json::Value>(bytes) else { return };
    let Some(fields) = document.as_object_mut() else { return };
    fields.remove(OWN_DIGEST);
    let sealed = seal(document);
    match steps::within(sealed.len(), || Manifest::parse(&sealed)) {
        Ok(manifest) => {
            let again = seal(serde_json::to_value(&manifest).expect("a manifest is JSON"));
            assert_eq!(Manifest::parse(&again).as_ref(), Ok(&manifest));
        }
        Err(ManifestError::Missing) => panic!("there is one"),
        Err(ManifestError::Damaged(_) | ManifestError::OtherSchema) => {}
    }
});

/// Adds the digest over the document as it is without spaces, its keys sorted.
fn seal(mut document: serde_json::Value) -> Vec<u8> {
    let digest = base16ct::lower::encode_string(&Sha256::digest(document.to_string()));
    document[OWN_DIGEST] = digest.into();
    document.to_string().into_bytes()
}
