//! `conman doctor`: what this machine offers, and what each missing thing costs.
//!
//! ```text
//! look (probes: reads, and a few tries that leave nothing) ──► Facts ──► judge (pure) ──► findings
//! ```

mod facts;
mod judge;

use serde_json::json;

use self::facts::Facts;
use self::judge::{Finding, Verdict, judge};
use super::exit::Exit;
use super::output::{Mood, Output};

/// How doctor prints, and which port it looks at.
#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    /// The port that the gateway would listen on
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<Exit> {
    let findings = judge(&Facts::of_this_machine(args.port));
    let output = Output::of_process(args.json);
    let missing = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Missing)
        .count();
    if output.json {
        let checks: Vec<_> = findings.iter().map(as_json).collect();
        output.document(&json!({ "ok": missing == 0, "checks": checks }))?;
    } else {
        output.table(
            &["CHECK", "", "FOUND", "COST", "REMEDY"],
            findings.iter().map(row).collect(),
        )?;
        output.line(match missing {
            0 => "conman runs here in full: `conman up`",
            _ => "the native runtime does not run here; `conman up --runtime process` may, without isolation",
        })?;
    }
    Ok(if missing == 0 {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn as_json(finding: &Finding) -> serde_json::Value {
    json!({
        "check": finding.check,
        "verdict": finding.verdict.as_str(),
        "found": finding.found,
        "cost": finding.cost,
        "remedy": finding.remedy,
    })
}

fn row(finding: &Finding) -> Vec<(String, Mood)> {
    let mood = match finding.verdict {
        Verdict::Fine => Mood::Good,
        Verdict::Worse => Mood::Warning,
        Verdict::Missing => Mood::Bad,
    };
    let plain = |text: &str| (text.to_owned(), Mood::Plain);
    vec![
        plain(finding.check),
        (finding.verdict.as_str().to_owned(), mood),
        plain(&finding.found),
        plain(finding.cost),
        plain(finding.remedy),
    ]
}
