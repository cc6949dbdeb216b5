//! The environment of what runs in the sandbox: an allow-list, never the caller's own.

/// What every step has, whatever the spec says.
pub const ALWAYS: [(&str, &str); 6] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("DEBIAN_FRONTEND", "noninteractive"),
    // Package scripts must not talk to a service manager that is not there.
    ("SYSTEMD_OFFLINE", "1"),
    ("TERM", "dumb"),
];

/// Variables of the caller that a step sees: how to reach the network from here. Both spellings are in use.
pub const PASSED: [&str; 8] =
    ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY"];

/// The environment of the host's own tools, which make bases.
pub fn host_tools() -> Vec<(String, String)> {
    let mut environment = owned(&ALWAYS[..3]);
    environment.extend(passed());
    environment
}

pub fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub fn passed() -> impl Iterator<Item = (String, String)> {
    PASSED.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)))
}
