//! The field trial, repeated on one machine: two gateways and two KMEs on a simulated QKD link of 50 km, five
//! days with one rekey a minute in twelve minutes, and an eavesdropper who measures twice. It writes one page
//! of HTML with plots, and fails if the loss of a packet is not explained.

#![allow(clippy::unwrap_used, reason = "what goes wrong ends the trial, and says where")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "places in plots and numbers for people, all small"
)]

mod chart;
mod page;
mod story;
mod text;
mod traffic;
mod verdict;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use tests::sandbox;

use crate::story::Plan;

const USAGE: &str = "usage: qvpn-trial [--short] [--out DIR]

  --short        the same story in half a minute
  --out DIR      where trial.html and facts.json are written; default: target/trial

Exit status: 0 all as it should be; 1 not, or the trial could not be done; 2 wrong use.";

fn main() -> ExitCode {
    let mut plan = Plan::FULL;
    let mut out = PathBuf::from("target/trial");
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match (word.as_str(), words.len()) {
            ("--short", _) => plan = Plan::SHORT,
            ("--out", 1..) => out = PathBuf::from(words.next().unwrap_or_default()),
            ("--help" | "-h", _) => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    sandbox::main(|| {
        std::fs::create_dir_all(&out).unwrap();
        let record = story::play(&plan);
        let facts = verdict::judge(&plan, &record);
        let (html, json) = (out.join("trial.html"), out.join("facts.json"));
        std::fs::write(&html, page::write(&plan, &record, &facts)).unwrap();
        std::fs::write(&json, serde_json::to_string_pretty(&facts).unwrap()).unwrap();
        println!();
        for check in &facts.checks {
            println!("  {}  {}", if check.ok { "ok    " } else { "FAILED" }, check.text);
        }
        println!("\nThe page: {}", html.display());
        if facts.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    })
}
