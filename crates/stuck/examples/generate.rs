//! Writes a session log for benchmarks: `generate BYTES [SEED]` to standard output.
//!
//! conman's own lines, in order of time, over one day: 2 % of attempts fail, 200,000 entities.

use std::io::{self, BufWriter, Write};

/// A small generator of random numbers: the same log for the same seed, on any machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let bytes_wanted: u64 = arguments.next().unwrap_or_default().parse()?;
    let seed: u64 = arguments.next().unwrap_or_else(|| "1".to_owned()).parse()?;
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let entities = 200_000;
    // Down until then: attempts on it fail.
    let mut down_until = vec![0_u64; entities as usize];
    let mut out = BufWriter::with_capacity(1 << 20, io::stdout().lock());
    let lines = bytes_wanted / 190;
    let step_ns = 86_400_000_000_000 / lines.max(1);
    let mut time_ns = 1_767_225_600_000_000_000_u64;
    let mut retry: std::collections::VecDeque<(u64, u64)> = std::collections::VecDeque::new();
    let mut written = 0;
    let mut line = Vec::with_capacity(256);
    let mut index = 0_u64;
    while written < bytes_wanted {
        index += 1;
        time_ns += 1 + random.below(2 * step_ns);
        // Who failed comes back soon, most of the time.
        let is_due = retry.front().is_some_and(|(due, _)| *due <= time_ns);
        let again = if is_due { retry.pop_front() } else { None };
        let entity = again.map_or_else(|| random.below(entities), |(_, entity)| entity);
        let down = &mut down_until[entity as usize];
        let dice = random.below(1_000_000);
        if *down < time_ns && dice < 1_550 {
            // Down for 2 s to 2 min, one in 500 for an hour or two.
            let down_s = if random.below(500) == 0 {
                3_600 + random.below(3_600)
            } else {
                2 + random.below(118)
            };
            *down = time_ns + down_s * 1_000_000_000;
        }
        let (outcome, reason) = if *down >= time_ns {
            retry.push_back((time_ns + 5_000_000_000, entity));
            ("platform_fail", "owner_draining")
        } else if dice > 995_000 {
            ("client_abort", "client_gone")
        } else if dice > 985_000 {
            ("user_fail", "port_refused")
        } else {
            ("ok", "none")
        };
        line.clear();
        let time = jiff::Timestamp::from_nanosecond(i128::from(time_ns / 1_000 * 1_000))?;
        writeln!(
            line,
            r#"{{"time":"{time:.6}","repl":"repl-{entity:06}","session":"{:016x}","outcome":"{outcome}","reason":"{reason}","host":"host-{:03}","epoch":{},"attempt_ms":{}}}"#,
            random.next(),
            entity % 300,
            1_000_000 + index,
            1 + random.below(900),
        )?;
        out.write_all(&line)?;
        written += line.len() as u64;
    }
    out.flush()?;
    Ok(())
}
