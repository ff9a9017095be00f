//! Minimum, median and maximum over runs of the same thing.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use wherry_tests::median;

use crate::entry::Entry;

/// Gives every entry of a case that was run several times the spread of each of its numbers over
/// the successful runs.
pub fn add(entries: &mut [Entry]) {
    let mut groups: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
    for (index, entry) in entries.iter().enumerate() {
        groups.entry((entry.id.clone(), entry.vmm.clone())).or_default().push(index);
    }
    for indices in groups.values().filter(|indices| indices.len() > 1) {
        let figures: Vec<Value> = indices
            .iter()
            .filter(|&&index| entries[index].ok())
            .filter_map(|&index| serde_json::to_value(&entries[index].figures).ok())
            .collect();
        let spread = of(&figures);
        for &index in indices {
            entries[index].spread = Some(spread.clone());
        }
    }
}

fn of(figures: &[Value]) -> Value {
    let mut spread = Map::new();
    let keys = figures.first().and_then(Value::as_object).into_iter().flat_map(Map::keys);
    for key in keys {
        let mut numbers: Vec<f64> = figures.iter().filter_map(|f| f[key].as_f64()).collect();
        numbers.sort_by(f64::total_cmp);
        if let (Some(min), Some(median), Some(max)) =
            (numbers.first(), median(numbers.iter().copied()), numbers.last())
        {
            spread.insert(key.clone(), json!({ "min": min, "median": median, "max": max }));
        }
    }
    Value::Object(spread)
}

/// One entry for each case and VMM: the only run, or the successful one whose total time is the
/// median (the lower one of two).
pub fn typical(entries: &[Entry]) -> Vec<&Entry> {
    let mut order: Vec<(&str, &str)> = Vec::new();
    let mut groups: BTreeMap<(&str, &str), Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        let key = (entry.id.as_str(), entry.vmm.as_str());
        if !order.contains(&key) {
            order.push(key);
        }
        groups.entry(key).or_default().push(entry);
    }
    order
        .iter()
        .filter_map(|key| {
            let all = groups.get(key)?;
            let mut good: Vec<&Entry> = all.iter().copied().filter(|e| e.ok()).collect();
            good.sort_by_key(|e| e.figures.total_ms);
            good.get(good.len().saturating_sub(1) / 2).or(all.first()).copied()
        })
        .collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::case::Named;

    /// An entry for tests.
    pub fn entry(id: &str, vmm: &str, run: u32, total_ms: u64) -> Entry {
        let hints = if id.contains("hints=on") { "on" } else { "off" };
        let spec =
            toml::from_str(&format!("title = 'A guest'\nmemory = '1GiB'\nhints = '{hints}'"))
                .unwrap();
        let mut entry = Entry::new(&Named { case: "a".into(), id: id.into(), spec }, vmm, run);
        entry.figures.total_ms = Some(total_ms);
        entry.figures.total_bytes = Some(total_ms * 1_000_000);
        entry.figures.floor_bytes = Some(100_000_000);
        entry
    }

    #[test]
    fn spread_is_of_good_runs_of_the_same_case() {
        let mut all = vec![
            entry("a", "wherry", 1, 30),
            entry("a", "wherry", 2, 10),
            entry("a", "wherry", 3, 999),
        ];
        all.push(entry("a", "wherry", 4, 20));
        all.push(entry("a", "qemu", 1, 5));
        all[2].outcome = "failed".into();
        add(&mut all);
        let spread = all[0].spread.clone().unwrap();
        assert_eq!(spread["total_ms"], json!({ "min": 10.0, "median": 20.0, "max": 30.0 }));
        assert_eq!(all[4].spread, None);
        let typical = typical(&all);
        assert_eq!(
            typical.iter().map(|e| (e.vmm.as_str(), e.run)).collect::<Vec<_>>(),
            [("wherry", 4), ("qemu", 1)]
        );
    }
}
