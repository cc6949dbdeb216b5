//! The environment of build steps: an allow-list instead of the caller's environment.

use std::path::{Path, PathBuf};

use snug_sandbox::{CA_BUNDLE, CACHES};

use crate::plan::PackageManager;
use crate::steps::environment::{ALWAYS, owned, passed};

/// The time of a reproducible build (reproducible-builds.org), which useradd and Python record. It is an input of every
/// tree.
const TIME: &str = "SOURCE_DATE_EPOCH";

/// Variables that name a certificate bundle to programs.
const CA_VARIABLES: [&str; 7] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "npm_config_cafile",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "GIT_SSL_CAINFO",
];

/// Where distributions keep the bundle of all certificates they trust: Debian and Alpine, Fedora, openSUSE.
const CA_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// Returns the host's certificate bundle. Steps use the host's network, which may need a company's own authority.
pub(crate) fn ca_bundle() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    named.into_iter().chain(CA_BUNDLES.map(PathBuf::from)).find(|path| path.is_file())
}

/// What a step has beside the tree, and what its environment tells of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given {
    /// The host's certificates.
    pub trust: bool,
    /// The caches of package managers.
    pub caches: bool,
    /// A network; without one, the caller's proxies are out of reach.
    pub network: bool,
}

/// Returns the environment of a step. Variables of `spec` override all that the tool sets.
pub(crate) fn of_step(spec: &[(String, String)], given: Given) -> Vec<(String, String)> {
    let mut environment = owned(&ALWAYS);
    if given.network {
        environment.extend(passed());
    }
    environment.extend(std::env::var(TIME).map(|time| (TIME.to_owned(), time)));
    if given.trust {
        environment.extend(CA_VARIABLES.map(|name| (name.to_owned(), CA_BUNDLE.to_owned())));
    }
    if given.caches {
        let folder = |manager: PackageManager| Path::new(CACHES).join(manager.as_str()).display().to_string();
        environment.push(("npm_config_cache".to_owned(), folder(PackageManager::Npm)));
        environment.push(("PIP_CACHE_DIR".to_owned(), folder(PackageManager::Pip)));
    }
    environment.retain(|(name, _)| !spec.iter().any(|(own, _)| own == name));
    environment.extend_from_slice(spec);
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spec_wins_and_the_callers_environment_stays_out() {
        let own = vec![("LANG".to_owned(), "de_DE.UTF-8".to_owned()), ("FOO".to_owned(), "1".to_owned())];
        let environment = of_step(&own, Given { trust: true, caches: false, network: true });
        let get =
            |name: &str| environment.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
        assert_eq!(get("LANG"), ["de_DE.UTF-8"]);
        assert_eq!(get("FOO"), ["1"]);
        assert_eq!(get("HOME"), ["/root"]);
        assert_eq!(get("PIP_CERT"), ["/run/build/ca.crt"]);
        assert!(get("CARGO_MANIFEST_DIR").is_empty());
    }
}
