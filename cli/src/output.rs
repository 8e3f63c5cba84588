//! Standard output and standard error without panics: either may be a closed pipe or a terminal
//! that is gone.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// Writes a text to standard output, flushed, so that a reader of a pipe sees it at once.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes one line to standard output.
pub(crate) fn print_line(line: &str) -> io::Result<()> {
    print(&format!("{line}\n"))
}

/// Writes a value as one line of JSON to standard output.
pub(crate) fn print_json(value: &impl Serialize) -> io::Result<()> {
    print_line(&serde_json::to_string(value).map_err(io::Error::other)?)
}

/// Writes one line to standard error, for people; nobody to read it is no error.
pub(crate) fn say(line: &str) {
    let _closed = writeln!(io::stderr().lock(), "{line}");
}

/// Whether standard output is a terminal.
pub(crate) fn on_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Text that replaces itself on standard error while something takes its time. Nothing is written
/// when standard error is no terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { terminal: io::stderr().is_terminal() }
    }

    /// Shows what is going on now, in place of what was shown before.
    pub(crate) fn show(&self, text: &str) {
        if self.terminal {
            let _closed = write!(io::stderr().lock(), "\r\x1b[2K{text}");
        }
    }

    /// Takes the text away.
    pub(crate) fn clear(&self) {
        self.show("");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Whether standard output takes colours: a terminal, and no `NO_COLOR` (<https://no-color.org>).
pub(crate) fn colours() -> bool {
    on_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Lays rows out in columns, two blanks apart; the first row is the heading.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            line.push_str(&format!("{cell:<width$}  ", width = width(column)));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        assert_eq!(columns(&[row(["NAME", "X"]), row(["a", "bc"])]), "NAME  X\na     bc\n");
    }
}
