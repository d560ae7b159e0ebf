//! The expressions of `--ok`, `--fail` and `--neutral`.
//!
//! ```text
//! or    := and { "or" and }            also written ||
//! and   := not { "and" not }           also written &&
//! not   := "not" not | atom            also written !
//! atom  := "(" or ")" | FIELD [ OP VALUE | "in" "(" VALUE { "," VALUE } ")" ]
//! OP    := "=" | "==" | "!=" | "<" | "<=" | ">" | ">=" | "~" | "!~"
//! VALUE := bare word | 'text' | "text"
//! ```
//!
//! Where both sides are numbers they are compared as numbers, else `=` compares text and `<` is false.
//! `~` searches a regular expression. A field alone asks whether it is there. A comparison with a field
//! that is not there, or is null, is false, and so its `!=` is true. A JSON array equals a value that is
//! one of its elements, and so does a field whose name ends in `flags`, between commas (Envoy's `UF,URX`).

use regex::bytes::Regex;

use crate::{
    json,
    record::{Kind, Value, number},
};

/// Field names in the order of their slots.
#[derive(Debug, Clone, Default)]
pub struct Names(Vec<String>);

impl Names {
    /// The slot of a field, new if it was not asked for before.
    pub fn slot(&mut self, name: &str) -> usize {
        self.0
            .iter()
            .position(|known| known == name)
            .unwrap_or_else(|| {
                self.0.push(name.to_owned());
                self.0.len() - 1
            })
    }

    /// All names; the index is the slot.
    pub fn list(&self) -> &[String] {
        &self.0
    }
}

/// Why an expression is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at column {column} of `{text}`")]
pub struct ExprError {
    problem: String,
    column: usize,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone)]
struct Literal {
    text: Vec<u8>,
    number: Option<f64>,
}

/// An expression over the fields of a line.
#[derive(Debug, Clone)]
pub struct Expr(Node);

#[derive(Debug, Clone)]
enum Node {
    Any(Vec<Node>),
    All(Vec<Node>),
    Not(Box<Node>),
    Exists(usize),
    Compare {
        slot: usize,
        op: Op,
        literal: Literal,
        is_list: bool,
    },
    Matches {
        slot: usize,
        regex: Regex,
    },
}

impl Expr {
    /// Reads an expression; the fields that it names get slots.
    ///
    /// # Errors
    /// When it does not follow the grammar above.
    pub fn parse(text: &str, names: &mut Names) -> Result<Self, ExprError> {
        let mut parser = Parser {
            text,
            at: 0,
            names,
            depth: 0,
        };
        let node = parser.any()?;
        parser.space();
        if parser.at < text.len() {
            return Err(parser.error("expected `and`, `or` or the end"));
        }
        Ok(Self(node))
    }

    /// Whether the line fulfils it.
    pub fn holds<'a>(&self, get: &impl Fn(usize) -> Option<Value<'a>>) -> bool {
        self.0.holds(get)
    }
}

impl Node {
    fn holds<'a>(&self, get: &impl Fn(usize) -> Option<Value<'a>>) -> bool {
        let present = |slot| get(slot).filter(|value: &Value<'a>| value.kind != Kind::Null);
        match self {
            Self::Any(nodes) => nodes.iter().any(|node| node.holds(get)),
            Self::All(nodes) => nodes.iter().all(|node| node.holds(get)),
            Self::Not(node) => !node.holds(get),
            Self::Exists(slot) => present(*slot).is_some(),
            Self::Matches { slot, regex } => {
                present(*slot).is_some_and(|value| regex.is_match(value.bytes))
            }
            Self::Compare {
                slot,
                op,
                literal,
                is_list,
            } => match present(*slot) {
                Some(value) => compare(value, *op, literal, *is_list),
                None => *op == Op::Unequal,
            },
        }
    }
}

fn compare(value: Value<'_>, op: Op, literal: &Literal, is_list: bool) -> bool {
    match op {
        Op::Equal => equals(value, literal, is_list),
        Op::Unequal => !equals(value, literal, is_list),
        _ => {
            let (Some(left), Some(right)) = (value.number(), literal.number) else {
                return false;
            };
            match op {
                Op::Less => left < right,
                Op::LessOrEqual => left <= right,
                Op::Greater => left > right,
                _ => left >= right,
            }
        }
    }
}

fn equals(value: Value<'_>, literal: &Literal, is_list: bool) -> bool {
    let one = |bytes: &[u8]| {
        bytes == literal.text
            || literal
                .number
                .is_some_and(|wanted| number(bytes) == Some(wanted))
    };
    if value.kind == Kind::Array {
        return json::elements(value.bytes).any(|element| one(&element));
    }
    one(value.bytes) || (is_list && value.bytes.split(|byte| *byte == b',').any(one))
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    names: &'a mut Names,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn any(&mut self) -> Result<Node, ExprError> {
        let mut nodes = vec![self.all()?];
        while self.word("or") || self.sign("||") {
            nodes.push(self.all()?);
        }
        Ok(if nodes.len() == 1 {
            nodes.remove(0)
        } else {
            Node::Any(nodes)
        })
    }

    fn all(&mut self) -> Result<Node, ExprError> {
        let mut nodes = vec![self.not()?];
        while self.word("and") || self.sign("&&") {
            nodes.push(self.not()?);
        }
        Ok(if nodes.len() == 1 {
            nodes.remove(0)
        } else {
            Node::All(nodes)
        })
    }

    fn not(&mut self) -> Result<Node, ExprError> {
        self.depth += 1;
        if self.depth > 100 {
            return Err(self.error("nested too deep"));
        }
        let node = if self.word("not") || self.sign("!") {
            Node::Not(Box::new(self.not()?))
        } else {
            self.atom()?
        };
        self.depth -= 1;
        Ok(node)
    }

    fn atom(&mut self) -> Result<Node, ExprError> {
        if self.sign("(") {
            let node = self.any()?;
            return if self.sign(")") {
                Ok(node)
            } else {
                Err(self.error("expected `)`"))
            };
        }
        let name = self.field()?;
        let slot = self.names.slot(&name);
        let is_list = name.to_ascii_lowercase().ends_with("flags");
        let compare = |op, literal| Node::Compare {
            slot,
            op,
            literal,
            is_list,
        };
        if self.word("in") {
            if !self.sign("(") {
                return Err(self.error("expected `(` after `in`"));
            }
            let mut nodes = vec![compare(Op::Equal, self.value()?)];
            while self.sign(",") {
                nodes.push(compare(Op::Equal, self.value()?));
            }
            return if self.sign(")") {
                Ok(Node::Any(nodes))
            } else {
                Err(self.error("expected `,` or `)`"))
            };
        }
        let is_negated = self.sign("!~");
        if is_negated || self.sign("~") {
            let from = self.at;
            let pattern = self.value()?;
            let pattern = String::from_utf8_lossy(&pattern.text).into_owned();
            let regex = Regex::new(&pattern).map_err(|error| {
                self.at = from;
                self.error(&format!("not a regular expression ({error})"))
            })?;
            let node = Node::Matches { slot, regex };
            return Ok(if is_negated {
                Node::Not(Box::new(node))
            } else {
                node
            });
        }
        for (sign, op) in [
            ("==", Op::Equal),
            ("!=", Op::Unequal),
            ("<=", Op::LessOrEqual),
            (">=", Op::GreaterOrEqual),
            ("=", Op::Equal),
            ("<", Op::Less),
            (">", Op::Greater),
        ] {
            if self.sign(sign) {
                let literal = self.value()?;
                return Ok(compare(op, literal));
            }
        }
        Ok(Node::Exists(slot))
    }

    fn field(&mut self) -> Result<String, ExprError> {
        self.space();
        let rest = self.rest();
        let length = rest
            .find(|letter: char| !(letter.is_alphanumeric() || "_.@/-:$".contains(letter)))
            .unwrap_or(rest.len());
        let name = rest[..length].to_owned();
        if name.is_empty() || ["and", "or", "not", "in"].contains(&name.as_str()) {
            return Err(self.error("expected a field's name"));
        }
        self.at += length;
        Ok(name)
    }

    fn value(&mut self) -> Result<Literal, ExprError> {
        self.space();
        let rest = self.rest();
        let text = match rest.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let Some(length) = rest[1..].find(quote) else {
                    return Err(self.error("a quote that is not closed"));
                };
                self.at += length + 2;
                &rest[1..=length]
            }
            _ => {
                let length = rest
                    .find(|letter: char| letter.is_whitespace() || "()\"'=<>~!,&|".contains(letter))
                    .unwrap_or(rest.len());
                if length == 0 {
                    return Err(self.error("expected a value"));
                }
                self.at += length;
                &rest[..length]
            }
        };
        Ok(Literal {
            text: text.as_bytes().to_vec(),
            number: number(text.as_bytes()),
        })
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn sign(&mut self, sign: &str) -> bool {
        self.space();
        // `!` alone must not take the first half of `!=` or `!~`.
        let is_there = self.rest().starts_with(sign)
            && !(sign == "!" && self.rest()[1..].starts_with(['=', '~']));
        self.at += if is_there { sign.len() } else { 0 };
        is_there
    }

    fn word(&mut self, word: &str) -> bool {
        self.space();
        let rest = self.rest();
        let is_there = rest
            .get(..word.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(word))
            && rest[word.len()..]
                .chars()
                .next()
                .is_none_or(|next| " (!\t\n".contains(next));
        self.at += if is_there { word.len() } else { 0 };
        is_there
    }

    fn error(&self, problem: &str) -> ExprError {
        let column = self.text[..self.at].chars().count() + 1;
        ExprError {
            problem: problem.to_owned(),
            column,
            text: self.text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn holds(expression: &str, fields: &[(&str, &str)]) -> bool {
        let mut names = Names::default();
        let expr = Expr::parse(expression, &mut names).unwrap();
        let get = |slot: usize| {
            let (_, text) = fields
                .iter()
                .find(|(name, _)| *name == names.list()[slot])?;
            let kind = match *text {
                "null" => Kind::Null,
                text if text.starts_with('[') => Kind::Array,
                _ => Kind::Text,
            };
            Some(Value {
                bytes: text.as_bytes(),
                kind,
            })
        };
        expr.holds(&get)
    }

    #[test]
    fn the_examples() {
        assert!(holds("status>=500", &[("status", "503")]));
        assert!(!holds("status>=500", &[("status", "99")]));
        assert!(!holds("status>=500", &[("status", "n/a")]));
        assert!(holds(
            r#"msg~"unable to proxy""#,
            &[("msg", "was unable to proxy it")]
        ));
        assert!(holds("flags=UF", &[("flags", "UF,URX")]));
        assert!(!holds("flags=UF", &[("flags", "UFX")]));
        assert!(holds("tags=b", &[("tags", r#"["a","b"]"#)]));
        assert!(holds("a.b-c='x y' and not d", &[("a.b-c", "x y")]));
        assert!(holds("a=1 or b=2 and c=3", &[("a", "1")]));
        assert!(!holds("(a=1 or b=2) and c=3", &[("a", "1")]));
        assert!(holds("status in (502, 503,504)", &[("status", "504.0")]));
        assert!(holds("a!=1", &[]) && holds("a!~x", &[]) && !holds("a=1", &[]));
        assert!(!holds("a", &[("a", "null")]) && holds("!a", &[("a", "null")]));
        assert!(holds(
            "order=1 and notes=2",
            &[("order", "1"), ("notes", "2")]
        ));
    }

    #[test]
    fn errors_say_where() {
        let error = |text| {
            Expr::parse(text, &mut Names::default())
                .unwrap_err()
                .to_string()
        };
        insta::assert_snapshot!(error("status>="), @"expected a value at column 9 of `status>=`");
        insta::assert_snapshot!(error("a=1 b=2"), @"expected `and`, `or` or the end at column 5 of `a=1 b=2`");
        insta::assert_snapshot!(error("(a=1"), @"expected `)` at column 5 of `(a=1`");
        insta::assert_snapshot!(error(r#"a="x"#), @r#"a quote that is not closed at column 3 of `a="x`"#);
        insta::assert_snapshot!(error("and"), @"expected a field's name at column 1 of `and`");
        assert!(error("a~'('").contains("not a regular expression"));
    }

    proptest! {
        #[test]
        fn never_panics(text in r#"[a-c =<>!~()"'&|é,.]{0,30}|(not |a|and|or|=|1| |\(|\)){0,20}"#) {
            let mut names = Names::default();
            if let Ok(expr) = Expr::parse(&text, &mut names) {
                expr.holds(&|_| Some(Value { bytes: b"1", kind: Kind::Number }));
            }
        }
    }
}
