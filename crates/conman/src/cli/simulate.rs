//! `conman sim`: what a fault rate costs users and the store, by a simulation with the rules that run in production.

use std::time::Duration;

use model::stuck::Class;
use model::timing::{FAST, PATIENT};
use serde_json::{Value, json};
use sim::fleet::plan::{CELL_HOSTS_MAX, Fault, Plan, Rates, assumed};
use sim::fleet::report::{Durations, Report};
use sim::fleet::simulate;

use super::exit::Exit;
use super::output::{Mood, Output, Progress};
use super::repl::parse_duration;

/// The most hosts and repls that are simulated: beyond these, memory is not.
const HOSTS_MAX: u32 = 100_000;
const REPLS_MAX: u32 = 10_000_000;

/// What to simulate.
#[derive(Debug, clap::Args)]
pub(super) struct SimArgs {
    /// How many machines
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=i64::from(HOSTS_MAX)))]
    hosts: u32,
    /// How many repls, each with one user who wants it all the time
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(REPLS_MAX)))]
    repls: u32,
    /// How often each machine is taken away after 30 seconds' notice
    #[arg(
        long,
        default_value_t = 0.0,
        value_parser = parse_rate,
        value_name = "RATE"
    )]
    preempt_per_hour: f64,
    /// How often each machine is lost without notice
    #[arg(
        long,
        default_value_t = 0.0,
        value_parser = parse_rate,
        value_name = "RATE"
    )]
    crash_per_hour: f64,
    /// For how long
    #[arg(long = "for", value_parser = parse_duration, default_value = "1h", value_name = "TIME")]
    length: Duration,
    /// Reproduces a run exactly
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Into how many zones the machines are spread
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    zones: u32,
    /// Lose all machines of one zone at once, at half time
    #[arg(long)]
    lose_zone: bool,
    /// A lease of 30 s instead of 3 s
    #[arg(long)]
    patient: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What cannot be simulated.
#[derive(Debug, thiserror::Error)]
pub(super) enum CannotSimulate {
    /// No time for anything to happen.
    #[error(
        "--for {0:?} is too short: at least 1m, of which the first seconds are the fleet's start"
    )]
    TooShort(Duration),
    /// More zones than machines.
    #[error("--zones {zones} is more than there are machines in a cell ({hosts})")]
    EmptyZones {
        /// How many zones.
        zones: u32,
        /// How many machines.
        hosts: u32,
    },
    /// Nothing would be left.
    #[error("--lose-zone needs at least 2 zones: of one, nothing would be left")]
    OnlyZone,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.0..=60.0).contains(&rate) => Ok(rate),
        _ => Err(format!("{text:?} is not a rate per hour from 0 to 60")),
    }
}

fn plan(args: &SimArgs) -> Result<Plan, CannotSimulate> {
    if args.length < Duration::from_secs(60) {
        return Err(CannotSimulate::TooShort(args.length));
    }
    let hosts = args.hosts / args.hosts.div_ceil(CELL_HOSTS_MAX);
    if args.zones > hosts && (args.lose_zone || args.zones != 3) {
        return Err(CannotSimulate::EmptyZones {
            zones: args.zones,
            hosts,
        });
    }
    if args.lose_zone && args.zones < 2 {
        return Err(CannotSimulate::OnlyZone);
    }
    Ok(Plan {
        zones: args.zones,
        lose_zone: args.lose_zone,
        timing: if args.patient { PATIENT } else { FAST },
        length: args.length,
        rates: Rates::none()
            .with(Fault::Preemption, args.preempt_per_hour)
            .with(Fault::MachineCrash, args.crash_per_hour),
        ..Plan::new(args.hosts, args.repls, args.seed)
    })
}

pub(super) fn run(args: &SimArgs) -> anyhow::Result<Exit> {
    let plan = plan(args)?;
    let output = Output::of_process(args.json);
    let progress = Progress::begin("starting the fleet");
    let said = progress.handle();
    let report = simulate(&plan, |at| {
        let share = 100.0 * at.share;
        said.say(&format!("cell {} of {}, {share:.0} %", at.cell, at.cells));
    });
    drop(progress);
    if args.json {
        output.document(&document(&plan, &report))?;
    } else {
        print(&plan, &report, output)?;
    }
    Ok(if report.violations.is_empty() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// What the figures rest on besides conman's own rules.
fn assumptions(plan: &Plan) -> Vec<String> {
    let ms = |(least, most): (Duration, Duration)| {
        format!(
            "{} to {} ms",
            least.as_secs_f64() * 1e3,
            most.as_secs_f64() * 1e3
        )
    };
    let seconds = |(least, most): (Duration, Duration)| {
        format!("{} to {} s", least.as_secs(), most.as_secs())
    };
    vec![
        format!(
            "{} of at most {CELL_HOSTS_MAX} machines, each with a store and a gateway of its own; room for {} containers a machine",
            match plan.cells().len() {
                1 => "one cell".to_owned(),
                count => format!("{count} cells"),
            },
            plan.capacity
        ),
        format!(
            "renewals every {} ms, a lease of {} ms, stolen after {} ms of silence; clocks up to 1 % apart",
            plan.timing.renew.as_millis(),
            plan.timing.hold.as_millis(),
            plan.timing.steal.as_millis()
        ),
        format!(
            "rates are each machine's; a lost machine is replaced after {}",
            seconds(assumed::REPLACEMENT)
        ),
        format!(
            "one way between machines {}, the store {}",
            ms(assumed::NETWORK),
            ms(assumed::STORE)
        ),
        format!(
            "a container answers {} after its start, and is dead {} after SIGKILL",
            ms(assumed::START),
            ms(assumed::KILL)
        ),
        "every repl has one user, who is there all the time and tries again when refused"
            .to_owned(),
    ]
}

fn writes_per_second(report: &Report) -> f64 {
    report.store_writes as f64 / report.simulated_seconds.max(1.0)
}

fn stuck(report: &Report, class: Class) -> u64 {
    report.stuck.get(&class).copied().unwrap_or(0)
}

fn quantiles(durations: &Durations) -> Value {
    json!({
        "count": durations.count(),
        "p50_ms": durations.quantile_ms(0.5),
        "p99_ms": durations.quantile_ms(0.99),
        "max_ms": durations.quantile_ms(1.0),
    })
}

fn document(plan: &Plan, report: &Report) -> Value {
    let all = report.all_failovers();
    let causes = report.failover.iter();
    let causes: serde_json::Map<String, Value> = causes
        .map(|(cause, durations)| ((*cause).to_owned(), quantiles(durations)))
        .collect();
    json!({
        "violations": report.violations.len(),
        "violation_texts": report.violations.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>(),
        "failovers": all.count(),
        "failover_p50_ms": all.quantile_ms(0.5),
        "failover_p99_ms": all.quantile_ms(0.99),
        "failover_max_ms": all.quantile_ms(1.0),
        "failover_by_cause": causes,
        "store_writes_per_second": writes_per_second(report),
        "store_writes_per_second_peak_of_a_cell": report.store_writes_peak,
        "stuck": {
            "A": stuck(report, Class::A),
            "middle": stuck(report, Class::Middle),
            "B": stuck(report, Class::B),
        },
        "refused_once": report.blips,
        "zone": (report.zone.count() > 0).then(|| quantiles(&report.zone)),
        "faults": report.faults,
        "thefts": report.thefts,
        "false_fences": report.false_fences,
        "simulated_seconds": report.simulated_seconds,
        "host_years": report.host_seconds / (365.0 * 86_400.0),
        "seed": plan.seed,
        "trace": format!("{:016x}", report.trace),
        "assumptions": assumptions(plan),
    })
}

fn print(plan: &Plan, report: &Report, output: Output) -> anyhow::Result<()> {
    output.line("Assumed:")?;
    for line in assumptions(plan) {
        output.line(&format!("  {line}"))?;
    }
    output.line("")?;
    let span = |durations: &Durations| -> Vec<(String, Mood)> {
        let of = |share| durations.quantile_ms(share);
        let text = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{ms:.0} ms"));
        let cells = [of(0.5), of(0.99), of(1.0)];
        cells
            .into_iter()
            .map(|ms| (text(ms), Mood::Plain))
            .collect()
    };
    let mut rows = vec![];
    let all = report.all_failovers();
    for (name, durations) in report.failover.iter().chain([(&"all", &all)]) {
        let mut row = vec![
            ((*name).to_owned(), Mood::Plain),
            (durations.count().to_string(), Mood::Plain),
        ];
        row.extend(span(durations));
        rows.push(row);
    }
    output.table(&["CONTAINERS LOST TO", "COUNT", "P50", "P99", "MAX"], rows)?;
    output.line("")?;
    output.line(&format!(
        "store: {:.0} writes/s over all cells, at most about {} in one second of one cell",
        writes_per_second(report),
        report.store_writes_peak
    ))?;
    output.line(&format!(
        "stuck: A {}, middle {}, B {}; refused once: {}",
        stuck(report, Class::A),
        stuck(report, Class::Middle),
        stuck(report, Class::B),
        report.blips
    ))?;
    if report.zone.count() > 0 {
        let zone = &report.zone;
        let of = |share| zone.quantile_ms(share).unwrap_or_default() / 1e3;
        output.line(&format!(
            "zone lost: {} repls; back after {:.1} s (half), {:.1} s (99 %), {:.1} s (all)",
            zone.count(),
            of(0.5),
            of(0.99),
            of(1.0)
        ))?;
    }
    output.line(&format!(
        "simulated: {:.0} s, {:.2} host-years; {} thefts, {} false fences; seed {}",
        report.simulated_seconds,
        report.host_seconds / (365.0 * 86_400.0),
        report.thefts,
        report.false_fences,
        plan.seed
    ))?;
    output.line(&format!("violations: {}", report.violations.len()))?;
    for violation in &report.violations {
        output.line(&format!("  {violation:?}"))?;
    }
    Ok(())
}
