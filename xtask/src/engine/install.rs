//! How packages are installed: one shell script a package manager, the same for every engine.

use crate::namespace::CACHES;
use crate::plan::PackageManager;

/// The command that installs packages, as a shell script with the packages as its arguments.
pub fn install_command(manager: PackageManager, packages: &[String]) -> Vec<String> {
    let cache = format!("{CACHES}/{}", manager.as_str());
    let script = match manager {
        // Downloads stay in the mounted cache, where apt verifies them again before it uses them.
        PackageManager::Apt => format!(
            "mkdir -p {cache}/partial\n\
             options='-q -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 -o APT::Keep-Downloaded-Packages=true'\n\
             options=\"$options -o Dir::Cache::Archives={cache}\"\n\
             [ -z \"$SSL_CERT_FILE\" ] || options=\"$options -o Acquire::https::CAInfo=$SSL_CERT_FILE\"\n\
             apt-get $options update\n\
             apt-get $options install -y --no-install-recommends -- \"$@\"\n"
        ),
        PackageManager::Npm => "npm install --global --no-fund --no-audit --no-update-notifier -- \"$@\"\n".to_owned(),
        PackageManager::Pip => PIP_SCRIPT.to_owned(),
    };
    let mut command: Vec<String> = ["/bin/sh", "-e", "-c", &script, "install"].map(Into::into).into();
    command.extend_from_slice(packages);
    command
}

/// Debian's Python refuses pip's packages unless told twice, and pip itself is a tool of the build: where the image has
/// none, it is there for this step only.
const PIP_SCRIPT: &str = r#"
if ! command -v python3 >/dev/null; then
    echo "pip packages need python3 in the image: add it to the system packages" >&2
    exit 1
fi
borrowed=
if ! python3 -m pip --version >/dev/null 2>&1; then
    apt-mark showmanual python3 | grep -q . || apt-mark manual python3 >/dev/null
    apt-get -q -o Dpkg::Use-Pty=0 update
    apt-get -q -o Dpkg::Use-Pty=0 install -y --no-install-recommends python3-pip
    borrowed=1
fi
python3 -m pip install --break-system-packages --root-user-action=ignore -- "$@"
if [ -n "$borrowed" ]; then
    apt-get -q -o Dpkg::Use-Pty=0 purge -y --auto-remove python3-pip
fi
"#;
