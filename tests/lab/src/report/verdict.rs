//! What was found, in one table and one line. Other demonstrations use it, too.

use anyhow::Result;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{ContentArrangement, Table};
use std::time::Duration;

/// Widest line of the table, in columns: what a terminal shows without breaking it.
const WIDTH: u16 = 110;

/// Findings so far.
#[derive(Default)]
pub struct Verdict {
    findings: Vec<(String, Result<String>)>,
}

impl Verdict {
    /// Adds one; a failure is told at once and does not end the run.
    pub fn note(&mut self, what: &str, finding: Result<String>) {
        if let Err(error) = &finding {
            println!("  NOT AS IT SHOULD BE: {error:#}");
        }
        self.findings.push((what.to_owned(), finding));
    }

    /// Prints all; true when nothing failed.
    pub fn print(&self, elapsed: Duration) -> bool {
        let table = self.table();
        let failed = self.findings.iter().filter(|(_, finding)| finding.is_err()).count();
        let (passed, seconds) = (self.findings.len() - failed, elapsed.as_secs());
        println!("\n{table}");
        match failed {
            0 => println!("\nVERDICT: it works: all {passed} findings hold ({seconds} s)"),
            _ => println!(
                "\nVERDICT: it does not work: {failed} of {} findings don't hold ({seconds} s)",
                self.findings.len()
            ),
        }
        failed == 0
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY).set_header(["", "", "finding"]);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
        for (what, finding) in &self.findings {
            match finding {
                Ok(text) => table.add_row(["ok", what.as_str(), text.as_str()]),
                Err(error) => table.add_row(["FAILED", what.as_str(), &format!("{error:#}")]),
            };
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_findings_are_wrapped_and_short_ones_are_not() {
        let mut verdict = Verdict::default();
        verdict.note("a page", Ok("served".to_owned()));
        assert_eq!(verdict.table().to_string().lines().count(), 5, "{}", verdict.table());
        verdict.note(&"what was looked at ".repeat(6), Ok("and what was found ".repeat(12)));
        let text = verdict.table().to_string();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH.into()), "{text}");
        assert!(text.contains("served"), "{text}");
    }
}
