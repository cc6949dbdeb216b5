//! Lines that strangers write: a program can print a gigabyte without a newline.

use std::io::{self, BufRead};

/// Bytes of the longest line that is kept whole, the newline included: far more than anybody reads, and than a compiler or a
/// package manager prints.
pub const LINE_MAX: usize = 64 << 10;

/// Reads the next line, with its newline, into `line`, which is cleared. Of a line longer than [`LINE_MAX`] the beginning is
/// kept, and how many bytes it had in the place of the rest, so that memory stays bounded. Returns `false` at the end.
///
/// # Errors
///
/// Those of reading.
pub fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut length = 0_u64;
    loop {
        let found = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            found => found?,
        };
        if found.is_empty() {
            break;
        }
        let end = found.iter().position(|&byte| byte == b'\n').map(|at| at + 1);
        let piece = &found[..end.unwrap_or(found.len())];
        line.extend_from_slice(&piece[..piece.len().min(LINE_MAX - line.len())]);
        length += piece.len() as u64;
        let count = piece.len();
        input.consume(count);
        if end.is_some() {
            break;
        }
    }
    if length > line.len() as u64 {
        line.extend_from_slice(format!(" … (cut: the line has {length} bytes)\n").as_bytes());
    }
    Ok(length > 0)
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read, repeat};

    use super::*;

    #[test]
    fn lines_are_those_of_read_until_and_a_long_one_is_cut_in_bounded_memory() {
        let long = 100 * LINE_MAX as u64;
        let endless = repeat(b'x').take(long).chain(&b"\nnext\n\nlast"[..]);
        let mut input = BufReader::new(b"first\n".chain(endless));
        let mut line = Vec::new();
        let mut next = || read_line(&mut input, &mut line).unwrap().then(|| String::from_utf8(line.clone()).unwrap());
        assert_eq!(next().unwrap(), "first\n");
        let cut = next().unwrap();
        assert_eq!(&cut[LINE_MAX - 1..], format!("x … (cut: the line has {} bytes)\n", long + 1));
        assert_eq!(next().unwrap(), "next\n");
        assert_eq!(next().unwrap(), "\n");
        assert_eq!(next().unwrap(), "last");
        assert_eq!(next(), None);
        assert!(line.capacity() < 4 * LINE_MAX);
        let mut whole = BufReader::new(repeat(b'x').take(LINE_MAX as u64 - 1).chain(&b"\n"[..]));
        assert!(read_line(&mut whole, &mut line).unwrap() && line.len() == LINE_MAX && line.ends_with(b"x\n"));
    }
}
