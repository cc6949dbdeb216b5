//! The environment of commands in the sandbox: an allow-list, never the caller's own.

/// Variables of every step.
pub const ALWAYS: [(&str, &str); 6] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("DEBIAN_FRONTEND", "noninteractive"),
    // There is no service manager for package scripts to talk to.
    ("SYSTEMD_OFFLINE", "1"),
    ("TERM", "dumb"),
];

/// Variables of the caller that steps get, for the network.
pub use crate::report::proxies::VARIABLES as PASSED;

/// Returns the environment of the host's programs that make bases.
pub fn host_tools() -> Vec<(String, String)> {
    let mut environment = owned(&ALWAYS[..3]);
    environment.extend(passed());
    environment
}

/// Returns the pairs as owned strings.
pub fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Returns the variables of [`PASSED`] that the caller has.
pub fn passed() -> impl Iterator<Item = (String, String)> {
    PASSED.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)))
}
