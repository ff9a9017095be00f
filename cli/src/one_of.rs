//! Options that are one of a few words.

use clap::builder::{PossibleValuesParser, TypedValueParser};

/// One of a few words, each for a value of a type that is none of clap's.
pub fn one_of<T: Copy + Send + Sync + 'static, const N: usize>(
    all: [(&'static str, T); N],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(all.map(|(word, _)| word)).try_map(move |given| {
        all.into_iter().find(|(word, _)| *word == given).map(|(_, value)| value).ok_or("unknown")
    })
}
