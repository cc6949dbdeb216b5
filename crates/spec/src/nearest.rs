//! "Did you mean": the nearest of the names that would have been right.

/// Letters that must agree before a name counts as the beginning of another.
const BEGINNING: usize = 3;

/// The candidate that `name` was most likely meant to be, if any is near enough: a third of its letters may differ, or
/// it may be cut short.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let length = name.chars().count();
    let limit = 1.max(length / 3);
    let of = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        // A beginning counts as one slip, so that a nearer spelling still wins.
        if length >= BEGINNING && candidate.starts_with(&name) { 1 } else { distance(&name, &candidate) }
    };
    candidates
        .into_iter()
        .map(|candidate| (of(candidate), candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// What to say of `name` among `candidates`: the nearest one, else all of them.
pub(crate) fn suggestion<'a>(name: &str, noun: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(name, candidates.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("{noun}: {}", list(candidates)),
    }
}

/// `a`, `b`, `c`
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Letters to insert, delete, replace or swap with their neighbour (Damerau and Levenshtein's distance, each letter
/// touched once).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &from) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &to) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(from != to);
            let mut best = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && from == b[j - 1] && a[i - 1] == to {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_the_textbook() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("pakages", "packages", 1),
            ("ab", "ba", 1),
            ("ä", "a", 1),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn only_near_names_are_suggested() {
        let keys = ["base", "packages", "min-size", "run"];
        assert_eq!(nearest("pakages", keys), Some("packages"));
        assert_eq!(nearest("min_size", keys), Some("min-size"));
        assert_eq!(nearest("Base", keys), Some("base"));
        assert_eq!(nearest("x", ["run"]), None);
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(nearest("net_bind", ["setgid", "net_admin", "net_bind_service"]), Some("net_bind_service"));
    }
}
