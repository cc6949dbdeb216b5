//! Medians of the measurements, as a table and as JSON.

use std::time::Duration;

use serde::Serialize;

use super::Measured;
use super::candidates::Candidate;
use crate::report::progress::human_bytes;
use crate::report::table;

/// All rounds of one candidate.
#[derive(Debug, Clone)]
pub struct Rounds {
    pub candidate: Candidate,
    pub measured: Vec<Measured>,
    /// Size of its output, in bytes.
    pub output_bytes: Option<u64>,
}

/// Medians of a candidate's rounds. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Row {
    pub name: &'static str,
    pub title: &'static str,
    pub rounds: usize,
    pub cpu_seconds: f64,
    pub wall_seconds: f64,
    /// Until the result was on the disk.
    pub to_disk_seconds: f64,
    /// Median of the rounds' ratios to `cp` in the same round.
    pub cpu_to_cp: f64,
    pub wall_to_cp: f64,
    pub to_disk_to_cp: f64,
    /// Smallest and largest of those ratios.
    pub cpu_to_cp_range: [f64; 2],
    pub wall_to_cp_range: [f64; 2],
    pub to_disk_to_cp_range: [f64; 2],
    /// Largest resident set of any round.
    pub peak_memory_bytes: u64,
    pub output_bytes: Option<u64>,
}

/// Returns the rows, compared with the first candidate, which is `cp`. Candidates without a round are left out.
pub fn rows(all: &[Rounds]) -> Vec<Row> {
    let Some(copies) = all.first() else {
        return Vec::new();
    };
    all.iter().filter(|rounds| !rounds.measured.is_empty()).map(|rounds| row(rounds, &copies.measured)).collect()
}

fn row(rounds: &Rounds, copies: &[Measured]) -> Row {
    let seconds = |of: fn(&Measured) -> Duration| median(rounds.measured.iter().map(|one| of(one).as_secs_f64()));
    let ratios = |of: fn(&Measured) -> Duration| -> Vec<f64> {
        rounds.measured.iter().zip(copies).map(|(one, copy)| of(one).as_secs_f64() / of(copy).as_secs_f64()).collect()
    };
    let (cpu, wall, to_disk) = (ratios(|one| one.cpu), ratios(|one| one.wall), ratios(|one| one.to_disk));
    Row {
        name: rounds.candidate.name(),
        title: rounds.candidate.title(),
        rounds: rounds.measured.len(),
        cpu_seconds: seconds(|one| one.cpu),
        wall_seconds: seconds(|one| one.wall),
        to_disk_seconds: seconds(|one| one.to_disk),
        cpu_to_cp: median(cpu.iter().copied()),
        wall_to_cp: median(wall.iter().copied()),
        to_disk_to_cp: median(to_disk.iter().copied()),
        cpu_to_cp_range: range(&cpu),
        wall_to_cp_range: range(&wall),
        to_disk_to_cp_range: range(&to_disk),
        peak_memory_bytes: rounds.measured.iter().map(|one| one.peak_memory).max().unwrap_or(0),
        output_bytes: rounds.output_bytes,
    }
}

/// Returns the median; 0 if there are no values.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[count / 2],
        count => (values[count / 2 - 1] + values[count / 2]) / 2.0,
    }
}

fn range(values: &[f64]) -> [f64; 2] {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    [low, values.iter().copied().fold(0.0, f64::max)]
}

/// Renders the rows as a table.
pub fn table(rows: &[Row]) -> String {
    let cells: Vec<[String; 10]> = rows
        .iter()
        .map(|row| {
            [
                row.title.to_owned(),
                format!("{:.2} s", row.cpu_seconds),
                format!("{:.2} s", row.wall_seconds),
                format!("{:.2} s", row.to_disk_seconds),
                ratio(row.cpu_to_cp, row.cpu_to_cp_range),
                ratio(row.wall_to_cp, row.wall_to_cp_range),
                ratio(row.to_disk_to_cp, row.to_disk_to_cp_range),
                human_bytes(row.peak_memory_bytes),
                row.output_bytes.map(|bytes| bytes.to_string()).unwrap_or_default(),
                row.rounds.to_string(),
            ]
        })
        .collect();
    table::columns(
        ["what", "CPU", "wall", "to disk", "CPU / cp", "wall / cp", "to disk / cp", "memory", "bytes", "rounds"],
        &cells,
    )
}

fn ratio(middle: f64, [low, high]: [f64; 2]) -> String {
    format!("{middle:.2} ({low:.2}..{high:.2})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(candidate: Candidate, milliseconds: &[(u64, u64)], output_bytes: Option<u64>) -> Rounds {
        let time = Duration::from_millis;
        let measured = milliseconds
            .iter()
            .map(|&(cpu, wall)| Measured {
                cpu: time(cpu),
                wall: time(wall),
                to_disk: time(2 * wall),
                peak_memory: 1 << 20 | cpu,
            })
            .collect();
        Rounds { candidate, measured, output_bytes }
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let all = [
            rounds(Candidate::Copy, &[(400, 800), (800, 1600), (500, 1000)], Some(1000)),
            rounds(Candidate::File, &[(600, 800), (800, 1600), (1000, 3000)], Some(1100)),
            rounds(Candidate::Mke2fs, &[(4000, 4000)], None),
            rounds(Candidate::Loop, &[], None),
        ];
        insta::assert_snapshot!(table(&rows(&all)), @r"
        what                     CPU     wall    to disk  CPU / cp              wall / cp          to disk / cp       memory    bytes  rounds
        cp --reflink=never       0.50 s  1.00 s  2.00 s   1.00 (1.00..1.00)     1.00 (1.00..1.00)  1.00 (1.00..1.00)  1.00 MiB  1000   3
        snug, from a file        0.80 s  1.60 s  3.20 s   1.50 (1.00..2.00)     1.00 (1.00..3.00)  1.00 (1.00..3.00)  1.00 MiB  1100   3
        mke2fs -d, after tar -x  4.00 s  4.00 s  8.00 s   10.00 (10.00..10.00)  5.00 (5.00..5.00)  5.00 (5.00..5.00)  1.00 MiB         1
        ");
        assert_eq!(median([4.0, 1.0, 3.0, 2.0].into_iter()), 2.5);
    }
}
