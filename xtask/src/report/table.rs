//! Plain tables for people: columns as wide as their widest cell.

use std::borrow::Cow;

use snug_rootfs::printable::escaped;
use unicode_width::UnicodeWidthStr;

/// Formats rows under a heading, columns two spaces apart, without trailing spaces.
pub fn columns<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heading.map(UnicodeWidthStr::width);
    // A cell that ended its line, or moved to a tab stop, would pass for others.
    let rows: Vec<[Cow<str>; N]> = rows.iter().map(|row| row.each_ref().map(|cell| escaped(cell))).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    let line = |cells: [&str; N]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| (*cell).to_owned() + &" ".repeat(width - cell.width()))
            .collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(heading);
    for row in &rows {
        text += &line(row.each_ref().map(|cell| &**cell));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::columns;

    #[test]
    fn columns_fit_their_widest_cell() {
        let rows = [["a".to_owned(), "1 MiB".to_owned()], ["長い名前x".to_owned(), String::new()]];
        insta::assert_snapshot!(columns(["image", "size"], &rows), @r"
        image      size
        a          1 MiB
        長い名前x
        ");
        let rows = [["a\n::error::b".to_owned(), "\u{1b}]0;x\u{7}\t".to_owned()]];
        insta::assert_snapshot!(columns(["image", "size"], &rows), @r"
        image          size
        a\n::error::b  \u{1b}]0;x\u{7}\t
        ");
    }
}
