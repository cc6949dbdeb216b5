//! Checks of names that are passed to other programs: packages, variables, hosts, images. A name that a shell or an option
//! parser could interpret is an error.

use snug_rootfs::glob::Glob;
use snug_rootfs::oci::{Reference, ReferenceError};

use super::nearest;
use super::reader::Problem;

/// Characters that a shell interprets.
const SHELL: &str = "|&;<>()$`\\\"' \t\n*?[]#{}!";

/// Longest host name (`HOST_NAME_MAX`), and longest of its labels (RFC 1123, section 2.1).
const HOST_NAME_MAX: usize = 64;
const HOST_LABEL_MAX: usize = 63;

/// Longest name of an image: it becomes a folder, and a part of container names.
const IMAGE_NAME_MAX: usize = 64;

/// Longest name of an extended attribute, and longest value, that Linux takes (`XATTR_NAME_MAX`, `XATTR_SIZE_MAX`).
const XATTR_NAME_MAX: usize = 255;
pub(crate) const XATTR_SIZE_MAX: usize = 65536;

/// Namespaces of extended attributes (xattr(7)).
pub(crate) const XATTR_NAMESPACES: [&str; 4] = ["user", "security", "trusted", "system"];

fn alphanumeric(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

/// Returns whether `text` consists of letters, digits and `extra`, beginning with a letter or digit.
fn is_word(text: &str, extra: &[u8]) -> bool {
    text.bytes().next().is_some_and(alphanumeric)
        && text.bytes().all(|byte| alphanumeric(byte) || extra.contains(&byte))
}

/// Makes the error for a package name, which names the shell character if there is one.
fn refused(text: &str, help: &str) -> Problem {
    let message = match text.chars().find(|ch| SHELL.contains(*ch)) {
        Some(ch) => format!("package name `{}` holds {ch:?}, which a shell would interpret", text),
        None => format!("`{}` is not a package name", text),
    };
    Problem::new(message, help)
}

/// Checks a package of apt or apk: `name`, `name:arch`, `name=version`, `name~version`; a version may end in `*`.
pub(crate) fn system_package(text: &str) -> Result<(), Problem> {
    let help = "as \"openssh-server\" or \"curl=8.14.*\"";
    let end = text.find(['=', '~']).unwrap_or(text.len());
    let (name, version) = (&text[..end], text[end..].trim_start_matches(['=', '~']));
    let (name, arch) = name.split_once(':').unwrap_or((name, "any"));
    if name.ends_with('-') && is_word(name, b"+-._") {
        return Err(Problem::new(
            format!("`{text}` ends in `-`, which asks apt to remove the package"),
            "remove packages with a `run` step",
        ));
    }
    let versioned = end == text.len() || is_word(version.trim_end_matches('*'), b"+-.:~_");
    if is_word(name, b"+-._") && is_word(arch, b"-") && versioned { Ok(()) } else { Err(refused(text, help)) }
}

/// Checks a package of npm: `name`, `@scope/name`, with `@version`, `@tag` or `@^range`.
pub(crate) fn npm_package(text: &str) -> Result<(), Problem> {
    let help = "as \"openclaw@2026.1.5\" or \"@scope/name@1.2.3\": packages of the registry only";
    let (scope, rest) = match text.strip_prefix('@').and_then(|scoped| scoped.split_once('/')) {
        Some((scope, rest)) => (scope, rest),
        None => ("unscoped", text),
    };
    let (name, version) = rest.split_once('@').unwrap_or((rest, "latest"));
    let valid =
        is_word(scope, b"-._~") && is_word(name, b"-._~") && is_word(version.trim_start_matches(['^', '~']), b"-.+");
    if valid { Ok(()) } else { Err(refused(text, help)) }
}

/// Checks a package of pip: `name`, `name[extra,extra]`, with `==version`, `==1.2.*` or `~=version`.
pub(crate) fn pip_package(text: &str) -> Result<(), Problem> {
    let help = "as \"websockify==0.13.0\" or \"uvicorn[standard]==0.35.0\"";
    let (requirement, version) = match text.split_once("==").or_else(|| text.split_once("~=")) {
        Some((requirement, version)) => (requirement, version.strip_suffix(".*").unwrap_or(version)),
        None => (text, "0"),
    };
    let (name, extras) = match requirement.split_once('[') {
        Some((name, extras)) => (name, extras.strip_suffix(']').unwrap_or_default()),
        None => (requirement, "none"),
    };
    let valid = is_word(name, b"-._")
        && !name.ends_with(['-', '.', '_'])
        && extras.split(',').all(|extra| is_word(extra, b"-._"))
        && is_word(version, b"-.+!_");
    if valid { Ok(()) } else { Err(refused(text, help)) }
}

/// Checks the name of an environment variable (POSIX, "Environment Variables").
pub(crate) fn environment(name: &str) -> Result<(), Problem> {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    if first && name.bytes().all(|byte| alphanumeric(byte) || byte == b'_') {
        return Ok(());
    }
    Err(Problem::new(
        format!("`{}` is not the name of an environment variable", name),
        "letters, digits and `_`, not starting with a digit",
    ))
}

pub(crate) fn hostname(text: &str) -> Result<(), Problem> {
    let label = |label: &str| is_word(label, b"-") && !label.ends_with('-') && label.len() <= HOST_LABEL_MAX;
    if text.len() <= HOST_NAME_MAX && text.split('.').all(label) {
        return Ok(());
    }
    Err(Problem::new(
        format!("`{}` is not a host name", text),
        format!("letters, digits and inner `-`, in labels divided by dots, at most {HOST_NAME_MAX} characters"),
    ))
}

/// Checks the name of an image, which is also its folder's.
pub(crate) fn image(text: &str) -> Result<(), Problem> {
    let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    if lower && text.len() <= IMAGE_NAME_MAX && is_word(text, b"-._") {
        return Ok(());
    }
    Err(Problem::new(
        format!("`{}` is not a name for an image", text),
        format!(
            "lower-case letters, digits, `-`, `.` and `_`, starting with a letter or digit, at most {IMAGE_NAME_MAX}"
        ),
    ))
}

/// Checks the id of a secret, which is the name of its file.
pub(crate) fn secret(text: &str) -> Result<(), Problem> {
    if is_word(text, b"-._") && text.len() <= IMAGE_NAME_MAX {
        return Ok(());
    }
    Err(Problem::new(format!("`{}` is not an id for a secret", text), "letters, digits, `-`, `.` and `_`"))
}

/// Checks the name of a Cargo package, target or feature.
pub(crate) fn cargo(text: &str) -> Result<(), Problem> {
    let first = text.bytes().next().is_some_and(|byte| alphanumeric(byte) || byte == b'_');
    if first && text.bytes().all(|byte| alphanumeric(byte) || b"-_+./".contains(&byte)) {
        return Ok(());
    }
    Err(Problem::new(format!("`{}` is not a Cargo package, target or feature", text), "letters, digits, `-` and `_`"))
}

/// Checks the name of a Debian suite, such as `trixie` or `trixie-backports`.
pub(crate) fn suite(text: &str) -> Result<(), Problem> {
    if is_word(text, b"-.") && !text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Ok(());
    }
    Err(Problem::new(format!("`{}` is not a Debian suite", text), "as \"trixie\""))
}

/// The suites of Debian's archive: the releases, the ones to come, and their aliases.
const SUITES: [&str; 9] =
    ["trixie", "bookworm", "bullseye", "forky", "sid", "stable", "testing", "unstable", "oldstable"];

/// Returns the help for a suite that the archive does not have: the nearest name, else those that it has had for long.
pub fn suite_help(suite: &str) -> String {
    nearest::suggestion(suite, "the suites are", SUITES)
}

/// Checks a timestamp of Debian's snapshot archive.
pub(crate) fn snapshot(text: &str) -> Result<(), Problem> {
    let digits = |part: Option<&str>| part.is_some_and(|part| part.bytes().all(|byte| byte.is_ascii_digit()));
    let date_and_time = text.len() == 16 && text.as_bytes()[8] == b'T' && text.ends_with('Z');
    if date_and_time && digits(text.get(..8)) && digits(text.get(9..15)) {
        return Ok(());
    }
    Err(Problem::new(
        format!("`{}` is not a timestamp of the snapshot archive", text),
        "year, month, day, `T`, time in UTC, `Z`, as \"20260801T000000Z\"",
    ))
}

/// The variants of mmdebstrap(1).
pub(crate) const VARIANTS: [&str; 8] =
    ["extract", "custom", "essential", "apt", "minbase", "buildd", "important", "standard"];

/// Reads a reference to an image of a registry.
pub(crate) fn oci_reference(text: &str) -> Result<Reference, Problem> {
    let help = "with registry and tag or digest, as \"docker.io/library/alpine:3.23\"";
    text.parse().map_err(|error: ReferenceError| Problem::new(error.to_string(), help))
}

/// Checks the full name of an extended attribute.
pub(crate) fn xattr(name: &str) -> Result<(), Problem> {
    let known =
        name.split_once('.').is_some_and(|(namespace, rest)| XATTR_NAMESPACES.contains(&namespace) && !rest.is_empty());
    if !known {
        return Err(Problem::new(
            format!("`{}` is not the name of an extended attribute", name),
            "it starts with `user.`, `security.`, `trusted.` or `system.`",
        ));
    }
    if name.len() > XATTR_NAME_MAX || name.contains('\0') {
        return Err(Problem::new(format!("the attribute's name is longer than {XATTR_NAME_MAX} bytes"), ""));
    }
    Ok(())
}

/// Checks a glob of `exclude`, which must not match the whole tree.
pub(crate) fn glob(text: &str) -> Result<(), Problem> {
    let Some(rest) = text.strip_prefix('/') else {
        let help = format!("write \"/{text}\" for this path, or \"/**/{text}\" for the name anywhere");
        return Err(Problem::new(format!("`{text}` is not rooted at `/`"), help));
    };
    if rest.split('/').all(|part| part.bytes().all(|byte| byte == b'*')) {
        return Err(Problem::new(format!("`{text}` would exclude the whole tree"), "name what to exclude"));
    }
    Glob::new(text).map(drop).map_err(|error| Problem::new(error.to_string(), ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asserts that `check` takes all of `good` and none of `bad`.
    #[track_caller]
    fn takes(check: fn(&str) -> Result<(), Problem>, good: &[&str], bad: &[&str]) {
        for text in good {
            assert_eq!(check(text), Ok(()), "{text:?}");
        }
        for text in bad {
            assert!(check(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn system_packages() {
        takes(
            system_package,
            &[
                "curl",
                "g++",
                "libc6:amd64",
                "curl=8.14.1-2+deb13u2",
                "git=1:2.47.*",
                "linux-image-6.1~rc1",
                "nodejs~=24",
                "nodejs=~24",
                "libstdc++6",
                "x11vnc",
                "r-base=4.5.0-1~bpo12+1",
            ],
            &[
                "",
                "-y",
                "--force-yes",
                "curl-",
                "*",
                "lib*",
                "a b",
                "curl;id",
                "$(id)",
                "a|b",
                "a>1",
                "./x.deb",
                "/x.deb",
                "curl=",
                "a=b=c",
                "a:b:c",
                "é",
                "a\n",
                "a\0",
            ],
        );
        assert!(system_package("curl-").unwrap_err().message.contains("remove"));
        assert!(system_package("a`id`").unwrap_err().message.contains("shell"));
    }

    #[test]
    fn npm_packages() {
        takes(
            npm_package,
            &[
                "openclaw",
                "openclaw@2026.1.5",
                "openclaw@latest",
                "@scope/name",
                "@scope/name@^1.2.3",
                "a@~1",
                "koffi@2.9.0-beta.1+x",
            ],
            &[
                "",
                "-g",
                "@scope",
                "@/x",
                "a@",
                "a@>=1",
                "git+ssh://x/y",
                "./x",
                "../x",
                "a b",
                "a;b",
                "a/b",
                "https://example.org/x.tgz",
                "a@npm:b",
            ],
        );
    }

    #[test]
    fn pip_packages() {
        takes(
            pip_package,
            &[
                "websockify",
                "websockify==0.13.0",
                "uvicorn[standard]==0.35.0",
                "a[b,c]~=1.2",
                "a==1.*",
                "zope.interface",
                "a==1!2.0.post1+local",
            ],
            &[
                "",
                "-r",
                "--index-url=x",
                "a==",
                "a[]",
                "a[b",
                "a]b[",
                "a>=1",
                "a<2",
                "a;python_version",
                "a @ file:///x",
                "git+https://x",
                "a-",
                "./x",
                "a==1.*.*",
            ],
        );
    }

    #[test]
    fn variables_and_hosts() {
        takes(environment, &["PATH", "_x", "a1"], &["", "1a", "A-B", "A B", "A=B", "Ä"]);
        takes(
            hostname,
            &["a", "openclaw", "a-b.example", "1"],
            &["", "-a", "a-", "a..b", "a_b", "a b", ".", &"a".repeat(65)],
        );
        let label = "a".repeat(64);
        takes(hostname, &[&label[1..]], &[&label]);
    }

    #[test]
    fn names_of_the_workspace() {
        takes(
            image,
            &["openclaw", "node-24", "a.b_c"],
            &["", "-a", ".hidden", "A", "a/b", "..", "a b", &"a".repeat(65)],
        );
        takes(secret, &["npm-token", "A.b_c"], &["", "..", "a/b", "-a"]);
        takes(cargo, &["agent", "_a", "vsock/std"], &["", "-p", "a b", "a;b"]);
    }

    #[test]
    fn bases() {
        takes(suite, &["trixie", "bookworm-backports", "stable"], &["", "Trixie", "-x", "a b", "a/b"]);
        takes(
            snapshot,
            &["20260801T000000Z"],
            &["", "20260801", "20260801T00000Z", "2026-08-01T00:00Z", "20260801T0000é0Z"],
        );
        let digest = format!("docker.io/library/alpine@sha256:{}", "a".repeat(64));
        let both = format!("docker.io/library/alpine:3.23@sha256:{}", "a".repeat(64));
        let long = format!("docker.io/library/alpine@sha256:{}", "A".repeat(64));
        takes(
            |text| oci_reference(text).map(drop),
            &["docker.io/library/alpine:3.23", "localhost:5000/a/b:latest", "localhost/a:1", &digest, &both],
            &[
                "",
                "alpine",
                "alpine:3.23",
                "library/alpine:3.23",
                "docker.io/library/alpine",
                "docker.io/Library/alpine:1",
                "docker.io/a:",
                "docker.io/a:-x",
                "docker.io/a b:1",
                "docker.io/a@sha256:abc",
                &long,
                "docker.io//a:1",
                "docker://docker.io/a:1",
            ],
        );
    }

    #[test]
    fn attributes_and_globs() {
        takes(
            xattr,
            &["user.a", "security.capability", "trusted.overlay.opaque"],
            &["", "user", "user.", "note", "User.a", &format!("user.{}", "a".repeat(251))],
        );
        takes(
            glob,
            &["/usr/share/doc", "/**/*.pyc", "/var/cache/**", "/tmp/*"],
            &["", "usr", "/", "/*", "/**", "/**/*", "//", "/a/../b", "**/x", "/a[", "/a/x**"],
        );
    }
}
