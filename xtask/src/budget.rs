//! The size budget of STYLE: files and functions short enough to be read at once.
//!
//! Works on text, not on a syntax tree: `cargo fmt --check` guarantees that an item ends at the first closing brace
//! in the column its first line starts in. Tests do not count: a long table of cases is no burden.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Lines of a file without its tests: the aim, and the limit.
const FILE_LINES: Budget = Budget { aim: 500, limit: 800 };
/// Lines of a function from `fn` to its closing brace: the aim, and the limit.
const FUNCTION_LINES: Budget = Budget { aim: 60, limit: 120 };

struct Budget {
    aim: usize,
    limit: usize,
}

/// Something longer than its aim.
struct Excess {
    what: String,
    lines: usize,
    over_limit: bool,
}

/// Reports what is over the aim; an error if anything is over the limit.
pub(crate) fn check(root: &Path) -> Result<()> {
    let mut files = Vec::new();
    collect(root, &mut files)?;
    files.sort();
    let mut found = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        found.extend(excesses(&file.strip_prefix(root).unwrap_or(file).display().to_string(), &text));
    }
    for Excess { what, lines, over_limit } in &found {
        println!("{}: {what}: {lines} lines", if *over_limit { "error" } else { "warning" });
    }
    let over = found.iter().filter(|excess| excess.over_limit).count();
    println!("{} files, {} over the aim, {over} over the limit", files.len(), found.len() - over);
    ensure!(
        over == 0,
        "{over} over the limit of {} lines a file and {} a function",
        FILE_LINES.limit,
        FUNCTION_LINES.limit
    );
    Ok(())
}

/// Source files below `directory`, without build output, hidden directories and test code.
fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !name.starts_with('.') && !matches!(&*name, "target" | "tests") {
                collect(&path, files)?;
            }
        } else if name.ends_with(".rs") && name != "tests.rs" {
            files.push(path);
        }
    }
    Ok(())
}

/// What in this file is over its aim: the file itself, then its functions in order.
fn excesses(file: &str, text: &str) -> Vec<Excess> {
    let lines: Vec<&str> = text.lines().collect();
    let (mut code_lines, mut functions, mut at) = (0, Vec::new(), 0);
    while at < lines.len() {
        if lines[at].trim() == "#[cfg(test)]" {
            at = end_of_item(&lines, at) + 1;
            continue;
        }
        if let Some(name) = function_name(lines[at]) {
            let length = end_of_item(&lines, at) - at + 1;
            functions.extend(FUNCTION_LINES.excess(format!("{file}:{}: fn {name}", at + 1), length));
        }
        code_lines += 1;
        at += 1;
    }
    FILE_LINES.excess(file.to_owned(), code_lines).into_iter().chain(functions).collect()
}

impl Budget {
    fn excess(&self, what: String, lines: usize) -> Option<Excess> {
        (lines > self.aim).then_some(Excess { what, lines, over_limit: lines > self.limit })
    }
}

/// Index of the last line of the item that starts at `first`: a closing brace, or a statement without a body.
fn end_of_item(lines: &[&str], first: usize) -> usize {
    let indent = indent_of(lines[first]);
    let ends = |line: &&str| {
        indent_of(line) == indent
            && (line.trim_start().starts_with('}') || line.ends_with(';') || line.ends_with("{}"))
    };
    lines[first..].iter().position(ends).map_or(lines.len() - 1, |offset| first + offset)
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The name of the function this line begins to define.
fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    loop {
        if let Some(name) = rest.strip_prefix("fn ") {
            return name.split(['(', '<']).next();
        }
        let (word, after) = rest.split_once(' ')?;
        let is_qualifier =
            word.starts_with("pub") || matches!(word, "const" | "async" | "unsafe" | "extern" | "\"C\"");
        rest = is_qualifier.then_some(after)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<(String, usize, bool)> {
        excesses("a.rs", text).into_iter().map(|found| (found.what, found.lines, found.over_limit)).collect()
    }

    fn function(name: &str, lines: usize) -> String {
        format!("    pub(crate) async fn {name}<T>(\n{}    }}\n", "        x();\n".repeat(lines - 2))
    }

    #[test]
    fn functions_are_measured_from_fn_to_closing_brace() {
        assert_eq!(names(&function("short", 60)), []);
        assert_eq!(names(&function("longish", 61)), [("a.rs:1: fn longish".to_owned(), 61, false)]);
        assert_eq!(names(&function("long", 121)), [("a.rs:1: fn long".to_owned(), 121, true)]);
    }

    #[test]
    fn a_function_without_body_ends_at_its_semicolon() {
        assert_eq!(names(&format!("    fn declared(&self);\n{}", "    x\n".repeat(80))), []);
    }

    #[test]
    fn test_modules_do_not_count() {
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", function("cases", 900));
        assert_eq!(names(&tests), []);
        let code = format!("#[cfg(test)]\nmod tests;\n{}", "x;\n".repeat(801));
        assert_eq!(names(&code), [("a.rs".to_owned(), 801, true)]);
    }

    #[test]
    fn only_definitions_are_functions() {
        assert_eq!(function_name("    pub const unsafe extern \"C\" fn call(x: u8) {"), Some("call"));
        assert_eq!(function_name("let f: fn (u8) = call;"), None);
        assert_eq!(function_name("/// A fn that"), None);
    }
}
