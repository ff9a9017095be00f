//! Figures in Prometheus' text format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use serde::{Serialize, Serializer};

/// How a figure moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Up and down.
    Gauge,
    /// Up alone, and to zero when what counts begins anew.
    Counter,
}

/// A value, exact where it is a whole number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Number {
    Whole(u64),
    Real(f64),
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(n) => n.fmt(f),
            Self::Real(x) => x.fmt(f),
        }
    }
}

/// Names and values of labels, in the order in which they are shown.
pub type Labels = Vec<(&'static str, String)>;

/// All values of one name.
#[derive(Debug, Serialize)]
pub struct Family {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    #[serde(serialize_with = "as_list")]
    samples: BTreeMap<Labels, Number>,
}

/// As `[{"labels": {"vm": "web"}, "value": 1}]`.
fn as_list<S: Serializer>(samples: &BTreeMap<Labels, Number>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(samples.iter().map(|(labels, value)| {
        let labels: BTreeMap<_, _> = labels.iter().map(|(name, value)| (*name, value)).collect();
        serde_json::json!({"labels": labels, "value": value})
    }))
}

/// Figures by name.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Families(Vec<Family>);

impl Families {
    /// A value. Of two with the same labels the first stays: a reader refuses all of a text that
    /// has both, and a VM may say anything.
    pub fn add(
        &mut self,
        (kind, name, help): (Kind, &'static str, &'static str),
        labels: Labels,
        value: Number,
    ) {
        let at = self.0.iter().position(|family| family.name == name).unwrap_or_else(|| {
            self.0.push(Family { name, kind, help, samples: BTreeMap::new() });
            self.0.len() - 1
        });
        if let Some(family) = self.0.get_mut(at) {
            family.samples.entry(labels).or_insert(value);
        }
    }

    /// The text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for Family { name, kind, help, samples } in &self.0 {
            let kind = match kind {
                Kind::Gauge => "gauge",
                Kind::Counter => "counter",
            };
            let help = help.replace('\\', r"\\").replace('\n', r"\n");
            // Nothing fails that writes into a string.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            for (labels, value) in samples {
                let _ = writeln!(text, "{name}{} {value}", shown(labels));
            }
        }
        text
    }
}

fn shown(labels: &Labels) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let label = |(name, value): &(&str, String)| format!("{name}=\"{}\"", escape(value));
    format!("{{{}}}", labels.iter().map(label).collect::<Vec<_>>().join(","))
}

/// As a value of a label is written.
fn escape(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}
