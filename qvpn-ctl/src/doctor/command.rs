//! Runs system commands that print JSON.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Returns the JSON output of a command; `None` if the command is missing or fails.
pub(super) fn json(program: &str, words: &[String]) -> Option<Value> {
    let output = command(program).args(words).output().ok()?;
    match (output.status.success(), output.stdout.as_slice()) {
        (true, []) => Some(Value::Array(Vec::new())),
        (true, text) => serde_json::from_slice(text).ok(),
        (false, _) => None,
    }
}

/// Returns the objects in the JSON lists that a command prints for the lines of its input. It prints nothing
/// for a line that fails.
pub(super) fn json_lines(program: &str, words: &[&str], input: &str) -> Vec<Value> {
    let child = command(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return Vec::new() };
    let input = input.to_owned();
    let stdin = child.stdin.take();
    // Write in parallel with reading, so that neither pipe can fill up.
    let writer = std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output();
    let _ = writer.join();
    let Ok(output) = output else { return Vec::new() };
    let lists = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Vec<Value>>();
    lists.map_while(Result::ok).flatten().collect()
}

/// In Debian, an ordinary user's PATH does not contain sbin.
fn command(program: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command.env("PATH", format!("{path}:/usr/sbin:/sbin:/usr/bin:/bin"));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_input_gives_its_objects_and_a_broken_end_is_ignored() {
        let read = |input: &str| json_lines("cat", &[], input).len();
        assert_eq!(read("[{\"dst\":\"10.0.0.1\"}]\n[{\"dst\":\"10.0.0.2\"}]\n"), 2);
        assert_eq!(read("[{}]\n[{}"), 1);
        assert_eq!(read(""), 0);
        assert!(json_lines("no-such-program", &[], "").is_empty());
    }
}
