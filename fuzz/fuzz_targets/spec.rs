//! Any text is a spec or an error with a place in it, in bounded steps; and the error can be shown.

#![no_main]

mod steps;

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use snug_spec::parse_image;

fuzz_target!(|text: &str| {
    // A folder that is not there: no file of the host decides what a spec is.
    let folder = Path::new("/nonexistent/images/name");
    steps::within(text.len(), || match parse_image(folder, text.to_owned()) {
        Ok(spec) => assert_eq!(spec.document.text, text),
        Err(errors) => assert!(!errors.to_string().is_empty()),
    });
});
