//! How packages are installed: one shell script a package manager, the same for every engine.

use snug_sandbox::CACHES;

use super::downloads::STORE;
use crate::plan::PackageManager;

/// The command that installs packages, as a shell script with the packages as its arguments.
pub(super) fn install_command(manager: PackageManager, packages: &[String]) -> Vec<String> {
    let script = match manager {
        PackageManager::Apt => apt_script(),
        PackageManager::Apk => apk_script(),
        PackageManager::System => format!(
            "if command -v apt-get >/dev/null; then\n{}\
             elif command -v apk >/dev/null; then\n{}\
             else\n\
             echo 'the base has neither apt-get nor apk, which alone can install the packages of a spec' >&2\n\
             exit 1\n\
             fi\n",
            apt_script(),
            apk_script()
        ),
        PackageManager::Npm => "npm install --global --no-fund --no-audit --no-update-notifier -- \"$@\"\n".to_owned(),
        PackageManager::Pip => PIP_SCRIPT.replace("@APT@", &apt_script()),
    };
    let mut command: Vec<String> = ["/bin/sh", "-e", "-c", &script, "install"].map(Into::into).into();
    command.extend_from_slice(packages);
    command
}

/// apt's archives are a folder of this image's own, so that builds at once do not meet at apt's locks. Packages of earlier
/// builds are linked into it from the store, where they stand under the digests that the signed index names. apt takes a
/// package from its archives that has the right length, so the digest is looked at once more: a disk may have damaged the file.
const APT_SCRIPT: &str = r#"
cache=@CACHES@/apt
store=@CACHES@/@STORE@/sha256
mkdir -p $cache/partial
options='-q -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 -o APT::Keep-Downloaded-Packages=true'
options="$options -o Dir::Cache::Archives=$cache"
[ -z "$SSL_CERT_FILE" ] || options="$options -o Acquire::https::CAInfo=$SSL_CERT_FILE"
apt-get $options -o APT::Update::Error-Mode=any update
[ ! -d $store ] ||
apt-get $options -q -q -o Acquire::ForceHash=SHA256 --print-uris install -y --no-install-recommends -- "$@" |
while read -r address name length digest; do
    digest=${digest#SHA256:}
    [ -f "$store/$digest" ] || continue
    if echo "$digest  $store/$digest" | sha256sum --status --check -; then
        ln -sf "$store/$digest" "$cache/$name"
    else
        echo "$name in the cache is not what the archive has: it is fetched anew"
    fi
done
apt-get $options install -y --no-install-recommends -- "$@"
"#;

fn apt_script() -> String {
    APT_SCRIPT.replace("@CACHES@", CACHES).replace("@STORE@", STORE)
}

/// apk, too, verifies what it takes from its cache. It trusts what OpenSSL does, and so SSL_CERT_FILE.
fn apk_script() -> String {
    let cache = format!("{CACHES}/{}", PackageManager::Apk.as_str());
    format!("mkdir -p {cache}\napk --cache-dir {cache} --no-progress --update-cache add -- \"$@\"\n")
}

/// The Pythons of Debian and Alpine refuse pip's packages unless told twice, and pip itself is a tool of the build: where
/// the image has none, it is there for this step only.
const PIP_SCRIPT: &str = r#"
by_apt() {
@APT@
}
if ! command -v python3 >/dev/null; then
    echo "pip packages need python3 in the image: add it to the system packages" >&2
    exit 1
fi
borrowed=
if python3 -m pip --version >/dev/null 2>&1; then
    :
elif command -v apk >/dev/null; then
    apk --no-progress --no-cache add --virtual .pip-of-the-build py3-pip
    borrowed=apk
else
    apt-mark showmanual python3 | grep -q . || apt-mark manual python3 >/dev/null
    by_apt python3-pip
    borrowed=apt
fi
install() { python3 -m pip install --break-system-packages --root-user-action=ignore "$@"; }
if ! install -- "$@"; then
    echo "pip failed: once more, with nothing from the cache" >&2
    install --no-cache-dir -- "$@"
fi
case $borrowed in
    apt) apt-get -q -o Dpkg::Use-Pty=0 purge -y --auto-remove python3-pip ;;
    apk) apk --no-progress del .pip-of-the-build ;;
esac
"#;
