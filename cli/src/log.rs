//! `--log-format`

use clap::Args;
use clap::builder::TypedValueParser;
use wherry_vmm::logging::Format;

use super::one_of::one_of;

/// Options of `run` and `receive` alike.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// How standard error says what happens: for people, as entries of the journal, or as a JSON
    /// object a line; auto is the journal where standard error leads there, else for people
    #[arg(long, value_parser = format(), default_value = Format::Auto.as_str())]
    pub log_format: Format,
}

fn format() -> impl TypedValueParser<Value = Format> {
    one_of(Format::ALL.map(|format| (format.as_str(), format)))
}
