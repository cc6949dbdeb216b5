//! "Did you mean": suggestions for misspelt names.

use strsim::osa_distance;

/// Letters that a name needs to count as the beginning of another.
const BEGINNING: usize = 3;

/// Returns the candidate nearest to `name` by optimal string alignment (letters inserted, deleted, replaced, or swapped
/// with their neighbour), if it is near enough: a third of the letters may differ, or `name` may be its beginning.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let length = name.chars().count();
    let limit = 1.max(length / 3);
    let of = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        // A beginning counts as a distance of one, so that a nearer spelling still wins.
        if length >= BEGINNING && candidate.starts_with(&name) { 1 } else { osa_distance(&name, &candidate) }
    };
    candidates
        .into_iter()
        .map(|candidate| (of(candidate), candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Returns the help for an unknown `name`: the nearest of `candidates`, else all of them after `noun`.
pub(crate) fn suggestion<'a>(name: &str, noun: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(name, candidates.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("{noun}: {}", list(candidates)),
    }
}

/// Lists names as `a`, `b`, `c`.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_near_names_are_suggested() {
        let keys = ["base", "packages", "min-size", "run"];
        assert_eq!(nearest("pakages", keys), Some("packages"));
        assert_eq!(nearest("min_size", keys), Some("min-size"));
        assert_eq!(nearest("Base", keys), Some("base"));
        assert_eq!(nearest("rnu", keys), Some("run"), "neighbours swapped");
        assert_eq!(nearest("x", ["run"]), None);
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(nearest("net_bind", ["setgid", "net_admin", "net_bind_service"]), Some("net_bind_service"));
    }
}
