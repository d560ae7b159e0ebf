//! The keys of a stuck tracker, and what one in a fleet follows without any.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::stuck::expr::{Expr, Names};
use ::stuck::format::{FORMATS, Format};
use ::stuck::live::{Audience, Rules};
use ::stuck::query::{Query, parse_duration, parse_zone};

use super::{
    Common, CommonKeys, ConfigError, File, StuckKeys, Surroundings, TextList, absolute, address_of,
    bad,
};
use crate::tracker::{self, Journal, Loki, Source, SourceKind};

/// Where a tracker listens when nothing is said.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8090);

/// How far back the first reading begins, of what has no beginning of its own.
const SINCE: Duration = Duration::from_secs(3600);

/// A tracker of its own.
#[derive(Debug, Clone)]
pub struct Stuck {
    /// Where its page is.
    pub listen: SocketAddr,
    /// What it follows, and how.
    pub tracker: tracker::Config,
}

/// What the tracker of a fleet follows: the session log of its gateway, and that of its prober, if there is one.
pub fn fleet_tracker(common: &Common, is_probing: bool) -> tracker::Config {
    let query = Arc::new(Query {
        format: Some(Format::Conman),
        ..Query::default()
    });
    let source = |name: &str, audience, path| Source {
        name: name.to_owned(),
        audience,
        query: query.clone(),
        kind: SourceKind::File(path),
    };
    let users = source("sessions", Audience::User, common.session_log.clone());
    let probes = is_probing.then(|| source("probes", Audience::Probe, common.probe_log()));
    tracker::Config {
        database: common.state.join("stuck.db"),
        rules: Rules::default(),
        sources: std::iter::once(users).chain(probes).collect(),
    }
}

impl Stuck {
    /// Checks the keys and fills in the defaults.
    ///
    /// # Errors
    /// The first key that cannot work.
    pub fn resolve(
        keys: StuckKeys,
        state: Option<PathBuf>,
        file: &File,
        surroundings: &Surroundings,
    ) -> Result<Self, ConfigError> {
        let keys = keys.or(file);
        let listen = keys.stuck_listen.as_deref();
        let listen = listen.map_or(Ok(LISTEN), |text| address_of("stuck_listen", text))?;
        let database = match &keys.stuck_database {
            Some(path) => absolute("stuck_database", path.clone())?,
            None => {
                let common = CommonKeys {
                    state,
                    ..CommonKeys::default()
                };
                Common::resolve(common, file, surroundings)?
                    .state
                    .join("stuck.db")
            }
        };
        let default = Rules::default();
        let rules = Rules {
            gap: duration("stuck_gap", &keys.stuck_gap, default.gap)?,
            lateness: duration("stuck_lateness", &keys.stuck_lateness, default.lateness)?,
            silence: duration("stuck_silence", &keys.stuck_silence, default.silence)?,
            ..default
        };
        if rules.gap.is_zero() {
            return Err(bad("stuck_gap", "must be longer than nothing"));
        }
        let query = Arc::new(query(&keys)?);
        let kinds = sources(&keys, rules.lateness)?;
        let sources = kinds.into_iter().map(|(name, kind)| Source {
            name,
            audience: Audience::User,
            query: query.clone(),
            kind,
        });
        let tracker = tracker::Config {
            database,
            rules,
            sources: sources.collect(),
        };
        Ok(Self { listen, tracker })
    }
}

fn duration(
    key: &'static str,
    text: &Option<String>,
    default: Duration,
) -> Result<Duration, ConfigError> {
    text.as_deref().map_or(Ok(default), |text| {
        parse_duration(text).map_err(|why| bad(key, why))
    })
}

fn query(keys: &StuckKeys) -> Result<Query, ConfigError> {
    let format = match keys.stuck_format.as_deref() {
        None | Some("auto") => None,
        Some(name) => Some(Format::named(name).ok_or_else(|| {
            let names: Vec<&str> = FORMATS.iter().map(|(_, name, _)| *name).collect();
            let names = names.join(", ");
            bad(
                "stuck_format",
                format!("{name:?} is no format; there are auto, {names}"),
            )
        })?),
    };
    if format.is_some() && keys.stuck_pattern.is_some() {
        return Err(bad(
            "stuck_pattern",
            "describes a format of its own: leave stuck_format out",
        ));
    }
    for (key, text) in [
        ("stuck_ok", &keys.stuck_ok),
        ("stuck_fail", &keys.stuck_fail),
        ("stuck_neutral", &keys.stuck_neutral),
    ] {
        if let Some(text) = text {
            Expr::parse(text, &mut Names::default())
                .map_err(|error| bad(key, error.to_string()))?;
        }
    }
    let zone = keys.stuck_tz.as_deref().unwrap_or("UTC");
    let zone = parse_zone(zone).map_err(|why| bad("stuck_tz", why))?;
    Ok(Query {
        format,
        entity: keys.stuck_entity.clone(),
        time: keys.stuck_time.clone(),
        ok: keys.stuck_ok.clone(),
        fail: keys.stuck_fail.clone(),
        neutral: keys.stuck_neutral.clone(),
        pattern: keys.stuck_pattern.clone(),
        zone,
        ..Query::default()
    })
}

/// Every source, with its name.
fn sources(keys: &StuckKeys, lateness: Duration) -> Result<Vec<(String, SourceKind)>, ConfigError> {
    let mut sources = Vec::new();
    let files = keys
        .stuck_files
        .clone()
        .map_or(Vec::new(), TextList::into_vec);
    for text in files {
        let path = absolute("stuck_files", PathBuf::from(text))?;
        let name = path.display().to_string();
        if name.contains(['*', '?', '[']) {
            glob::Pattern::new(&name).map_err(|error| {
                bad(
                    "stuck_files",
                    format!("{name} is no pattern: {}", error.msg),
                )
            })?;
            sources.push((name.clone(), SourceKind::Files(name)));
            continue;
        }
        let directory = path.parent().filter(|directory| directory.is_dir());
        if path.file_name().is_none() || path.is_dir() || directory.is_none() {
            let reason = format!("{} is no file in a directory that is there", path.display());
            return Err(bad("stuck_files", reason));
        }
        sources.push((name, SourceKind::File(path)));
    }
    if keys.stuck_stdin.unwrap_or(false) {
        sources.push(("stdin".to_owned(), SourceKind::StandardInput));
    }
    let since = duration("stuck_since", &keys.stuck_since, SINCE)?;
    sources.extend(journals(keys, since)?);
    sources.extend(loki(keys, since, lateness)?);
    if sources.is_empty() {
        return Err(bad(
            "stuck_files",
            "there is nothing to follow: give this key, stuck_journal, stuck_loki or stuck_stdin",
        ));
    }
    let mut names: Vec<&str> = sources.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let is_file = pair[0].starts_with('/');
        let key = if is_file {
            "stuck_files"
        } else {
            "stuck_journal"
        };
        return Err(bad(key, format!("{} is given twice", pair[0])));
    }
    Ok(sources)
}

fn journals(keys: &StuckKeys, since: Duration) -> Result<Vec<(String, SourceKind)>, ConfigError> {
    let directory = keys.stuck_journal_directory.clone();
    let directory = directory
        .map(|path| absolute("stuck_journal_directory", path))
        .transpose()?;
    let wanted = keys.stuck_journal.clone();
    let wanted = wanted.map_or(Vec::new(), TextList::into_vec);
    if wanted.is_empty() && directory.is_some() {
        let reason = "needs stuck_journal, which says what of it to follow";
        return Err(bad("stuck_journal_directory", reason));
    }
    let journal = |of: String| {
        if of.starts_with('-') || of.is_empty() {
            let reason = format!("{of:?} is neither a unit nor FIELD=VALUE");
            return Err(bad("stuck_journal", reason));
        }
        let (directory, name) = (directory.clone(), format!("journal {of}"));
        let journal = Journal {
            of,
            directory,
            since,
        };
        Ok((name, SourceKind::Journal(journal)))
    };
    wanted.into_iter().map(journal).collect()
}

fn loki(
    keys: &StuckKeys,
    since: Duration,
    lateness: Duration,
) -> Result<Option<(String, SourceKind)>, ConfigError> {
    let Some(url) = keys.stuck_loki.clone() else {
        let asked = [
            ("stuck_loki_query", keys.stuck_loki_query.is_some()),
            ("stuck_loki_tenant", keys.stuck_loki_tenant.is_some()),
            (
                "stuck_loki_authorization_file",
                keys.stuck_loki_authorization_file.is_some(),
            ),
        ];
        let lonely = asked.iter().find(|(_, is_set)| *is_set);
        return lonely.map_or(Ok(None), |(key, _)| {
            Err(bad(key, "needs stuck_loki, its address"))
        });
    };
    let is_address = url.parse::<http::Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.query().is_none()
    });
    if !is_address {
        let reason = format!("{url:?} is no address, as in https://loki.example:3100");
        return Err(bad("stuck_loki", reason));
    }
    let query = keys.stuck_loki_query.clone();
    let query = query.filter(|query| query.trim_start().starts_with('{'));
    let Some(query) = query else {
        let reason = r#"must say which lines, beginning with a selector as in {app="gateway"}"#;
        return Err(bad("stuck_loki_query", reason));
    };
    let authorization = keys.stuck_loki_authorization_file.clone();
    let authorization = authorization
        .map(|path| absolute("stuck_loki_authorization_file", path))
        .transpose()?;
    let loki = Loki {
        url,
        query: query.clone(),
        tenant: keys.stuck_loki_tenant.clone(),
        authorization,
        since,
        lateness,
    };
    Ok(Some((
        format!("loki {query}"),
        SourceKind::Loki(Box::new(loki)),
    )))
}
