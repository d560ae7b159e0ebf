//! Decides what a line proves: by the user's expressions first, then by what the format says.

use crate::{
    expr::{Expr, ExprError, Names},
    format::{text, words::Verdict},
    query::Query,
    record::{Kind, Value},
};

/// What a format's lines say of themselves.
#[derive(Debug, Clone)]
pub enum Base {
    /// A field holds an outcome's word, a truth value or an HTTP status.
    Words(usize),
    /// A field holds a log level.
    Level(usize),
    /// Envoy's flags and the status.
    Envoy(usize, usize),
    /// Expressions of the format's own, tried in this order; a line that fulfils none is neutral.
    Exprs {
        /// What counts as neither.
        neutral: Expr,
        /// What counts as failed.
        fail: Expr,
        /// What counts as reached.
        ok: Expr,
    },
    /// Nothing: only the user's expressions count.
    Nothing,
}

/// Decides lines of one file.
#[derive(Debug, Clone)]
pub struct Classifier {
    base: Base,
    ok: Option<Expr>,
    fail: Option<Expr>,
    neutral: Option<Expr>,
    has_exprs: bool,
}

impl Classifier {
    /// The user's expressions over what the format says.
    ///
    /// # Errors
    /// When an expression is none: its option, and what is wrong with it.
    pub fn new(
        base: Base,
        query: &Query,
        names: &mut Names,
    ) -> Result<Self, (&'static str, ExprError)> {
        let mut read = |option, text: &Option<String>| {
            let expr = text
                .as_deref()
                .map(|text| Expr::parse(text, names))
                .transpose();
            expr.map_err(|error| (option, error))
        };
        let ok = read("--ok", &query.ok)?;
        let fail = read("--fail", &query.fail)?;
        let neutral = read("--neutral", &query.neutral)?;
        let has_exprs = ok.is_some() || fail.is_some() || neutral.is_some();
        Ok(Self {
            base,
            ok,
            fail,
            neutral,
            has_exprs,
        })
    }

    /// What the line proves.
    ///
    /// Of the user's expressions `--neutral` goes first, then `--fail`, then `--ok`. With both of the
    /// last two a line that fulfils none is neutral; with one alone it is the other's, unless the
    /// format knows it to be neutral.
    #[inline]
    pub fn verdict<'a>(&self, get: &impl Fn(usize) -> Option<Value<'a>>) -> Verdict {
        if !self.has_exprs {
            return self.base.verdict(get);
        }
        let holds = |expr: &Option<Expr>| expr.as_ref().is_some_and(|expr| expr.holds(get));
        if holds(&self.neutral) {
            return Verdict::Neutral;
        }
        if holds(&self.fail) {
            return Verdict::Failed;
        }
        if holds(&self.ok) {
            return Verdict::Reached;
        }
        match (&self.fail, &self.ok) {
            (Some(_), Some(_)) => Verdict::Neutral,
            (None, None) => self.base.verdict(get),
            (fail, _) => match self.base.verdict(get) {
                Verdict::Neutral => Verdict::Neutral,
                _ if fail.is_some() => Verdict::Reached,
                _ => Verdict::Failed,
            },
        }
    }
}

impl Base {
    #[inline]
    fn verdict<'a>(&self, get: &impl Fn(usize) -> Option<Value<'a>>) -> Verdict {
        let present = |slot| get(slot).filter(|value: &Value<'a>| value.kind != Kind::Null);
        match self {
            Self::Words(slot) => {
                present(*slot).map_or(Verdict::Unknown, |value| Verdict::of(value.bytes))
            }
            Self::Level(slot) => {
                present(*slot).map_or(Verdict::Unknown, |value| Verdict::of_level(value.bytes))
            }
            Self::Envoy(flags, code) => {
                let bytes = |slot| present(slot).map_or(&b"-"[..], |value| value.bytes);
                text::envoy_verdict(bytes(*flags), bytes(*code))
            }
            Self::Exprs { neutral, fail, ok } => {
                if neutral.holds(get) {
                    Verdict::Neutral
                } else if fail.holds(get) {
                    Verdict::Failed
                } else if ok.holds(get) {
                    Verdict::Reached
                } else {
                    Verdict::Neutral
                }
            }
            Self::Nothing => Verdict::Unknown,
        }
    }
}
