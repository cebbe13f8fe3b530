//! Text of other machines in one line of a terminal.

use std::fmt;

/// A text for one line of a terminal: quotes, backslashes, control and formatting characters are escaped.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                // Printable text beyond ASCII stays readable; `escape_debug` knows what is not printable.
                '\'' => f.write_str("'")?,
                c => write!(f, "{}", c.escape_debug())?,
            }
        }
        Ok(())
    }
}
