//! Traces of runs, where they were kept.

use std::fs::File;
use std::io::BufReader;
use std::path::{Component, Path, PathBuf};

use wherry_report::Trace;

use crate::entry::Entry;

/// Folders in which to look for traces.
#[derive(Debug, Default)]
pub struct Traces(pub Vec<PathBuf>);

impl Traces {
    /// The trace of a run. A file of that name from another benchmark is none.
    pub fn of(&self, entry: &Entry) -> Option<Trace> {
        self.find(entry).map(|(_, trace)| trace)
    }

    /// Where it is.
    pub fn file(&self, entry: &Entry) -> Option<PathBuf> {
        self.find(entry).map(|(file, _)| file)
    }

    fn find(&self, entry: &Entry) -> Option<(PathBuf, Trace)> {
        let name = Path::new(entry.trace.as_deref()?);
        // A list of results may come from anywhere.
        if !name.components().all(|part| matches!(part, Component::Normal(_))) {
            return None;
        }
        let read = |file: PathBuf| {
            let trace = Trace::read(BufReader::new(File::open(&file).ok()?)).ok()?;
            Some((file, trace))
        };
        let mut all = self.0.iter().filter_map(|dir| read(dir.join(name)));
        all.find(|(_, trace)| Some(trace.total_bytes()) == entry.figures.total_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spread::tests::entry;

    #[test]
    fn only_its_own() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("traces")).unwrap();
        let write = |name: &str, bytes: u64| {
            let start = r#"{"t_us":0,"event":"start","version":1,"nr_pages":9,"hints":"on"}"#;
            let end = format!(r#"{{"t_us":9,"event":"end","report":{{"total_bytes":{bytes}}}}}"#);
            std::fs::write(dir.path().join(name), format!("{start}\n{end}\n")).unwrap();
        };
        write("traces/a", 5_000_000);
        write("traces/b", 6_000_000);
        let traces = Traces(vec!["/nowhere".into(), dir.path().join("x"), dir.path().to_owned()]);
        let mut run = entry("a", "wherry", 1, 5);
        let mut found = |name: Option<&str>| {
            run.trace = name.map(str::to_owned);
            traces.of(&run).map(|trace| trace.history.start.nr_pages)
        };
        assert_eq!(found(Some("traces/a")), Some(9));
        let absolute = dir.path().join("traces/a");
        for other in
            [None, Some("traces/b"), Some("traces/c"), absolute.to_str(), Some("../traces/a")]
        {
            assert_eq!(found(other), None, "{other:?}");
        }
    }
}
