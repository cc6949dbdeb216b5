//! Amounts as people read them.

use std::time::Duration;

pub use snug_ext4::size::human_bytes;

/// `0.4 s`, `17.5 s`, `2 min 05 s`
pub fn human_duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 100.0 {
        format!("{seconds:.1} s")
    } else {
        let whole = time.as_secs();
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

/// `1 image`, `3 images`
pub fn count(number: usize, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

/// `1 entry`, `3 entries`
pub fn entries(number: usize) -> String {
    if number == 1 { "1 entry".to_owned() } else { format!("{number} entries") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        assert_eq!(human_duration(Duration::from_millis(17_480)), "17.5 s");
        assert_eq!(human_duration(Duration::from_secs(125)), "2 min 05 s");
        assert_eq!(count(1, "last line"), "1 last line");
        assert_eq!(count(0, "image"), "0 images");
        assert_eq!(count(40, "line"), "40 lines");
    }
}
