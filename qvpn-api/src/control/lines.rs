//! Reads lines of bounded length from a blocking reader, or from the pieces that an async socket delivers. A
//! line that is too long is refused before all of it is in memory.

use std::io::{BufRead, Read};

use super::error::CodecError;

/// Reads a line of at most `limit` bytes, without its line feed; `None` at the end of the stream.
///
/// # Errors
/// [`CodecError::TooLong`], [`CodecError::Truncated`] if the stream ends inside a line, [`CodecError::Io`].
pub fn read_line(reader: &mut impl BufRead, limit: usize) -> Result<Option<Vec<u8>>, CodecError> {
    let mut line = Vec::new();
    // One more byte shows that the line is too long, and another one is for the line feed.
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(2);
    reader.by_ref().take(most).read_until(b'\n', &mut line)?;
    let ended = line.last() == Some(&b'\n');
    if ended {
        line.pop();
    }
    match (line.len(), ended) {
        (n, _) if n > limit => Err(CodecError::TooLong { limit }),
        (0, false) => Ok(None),
        (_, false) => Err(CodecError::Truncated),
        (_, true) => Ok(Some(line)),
    }
}

/// Collects pieces of a stream and returns whole lines, for a server that reads with `AsyncReadExt::read`.
///
/// ```
/// # use qvpn_api::control::LineBuffer;
/// let mut lines = LineBuffer::new(100);
/// lines.push(b"one\ntw");
/// assert_eq!(lines.next_line().unwrap(), Some(b"one".to_vec()));
/// assert_eq!(lines.next_line().unwrap(), None);
/// lines.push(b"o\n");
/// assert_eq!(lines.next_line().unwrap(), Some(b"two".to_vec()));
/// ```
#[derive(Debug)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    /// The number of bytes that have been searched and contain no line feed.
    searched: usize,
    limit: usize,
}

impl LineBuffer {
    /// A buffer for lines of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), searched: 0, limit }
    }

    /// Appends a piece of the stream.
    pub fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
    }

    /// The next whole line without its line feed; `None` if there is none yet.
    ///
    /// # Errors
    /// [`CodecError::TooLong`]; close the connection then, since the start of the next line is unknown.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, CodecError> {
        let found = self.bytes[self.searched..].iter().position(|b| *b == b'\n').map(|at| at + self.searched);
        if found.unwrap_or(self.bytes.len()) > self.limit {
            return Err(CodecError::TooLong { limit: self.limit });
        }
        let Some(end) = found else {
            self.searched = self.bytes.len();
            return Ok(None);
        };
        let rest = self.bytes.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        line.pop();
        self.searched = 0;
        Ok(Some(line))
    }

    /// Whether the buffer holds an unfinished line: a stream that ends now was cut off.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        !self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_line_takes_lines_up_to_the_limit_and_no_longer_ones() {
        let mut input: &[u8] = b"12345\n\n123456\n";
        assert_eq!(read_line(&mut input, 5).unwrap(), Some(b"12345".to_vec()));
        assert_eq!(read_line(&mut input, 5).unwrap(), Some(vec![]));
        assert!(matches!(read_line(&mut input, 5), Err(CodecError::TooLong { limit: 5 })));
        let mut input: &[u8] = b"ab";
        assert!(matches!(read_line(&mut input, 5), Err(CodecError::Truncated)));
        let mut input: &[u8] = b"";
        assert_eq!(read_line(&mut input, 5).unwrap(), None);
    }

    #[test]
    fn an_endless_line_is_never_held_whole() {
        let mut endless = std::io::BufReader::new(std::io::repeat(b'x'));
        assert!(matches!(read_line(&mut endless, 1000), Err(CodecError::TooLong { .. })));
    }

    #[test]
    fn a_line_buffer_gives_the_same_lines_however_the_stream_is_cut() {
        let stream = b"one\n\nthree\nfour\npart";
        for size in 1..=stream.len() {
            let (mut lines, mut buffer) = (Vec::new(), LineBuffer::new(5));
            for piece in stream.chunks(size) {
                buffer.push(piece);
                while let Some(line) = buffer.next_line().unwrap() {
                    lines.push(String::from_utf8(line).unwrap());
                }
            }
            assert_eq!(lines, ["one", "", "three", "four"], "pieces of {size}");
            assert!(buffer.is_partial());
        }
    }

    #[test]
    fn a_line_buffer_refuses_a_long_line_before_it_ends() {
        let mut buffer = LineBuffer::new(5);
        buffer.push(b"12345");
        assert_eq!(buffer.next_line().unwrap(), None);
        buffer.push(b"6");
        assert!(matches!(buffer.next_line(), Err(CodecError::TooLong { limit: 5 })));
    }
}
