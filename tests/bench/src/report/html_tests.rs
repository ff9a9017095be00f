use super::*;
use crate::spread::tests::entry;

#[test]
fn classes_add_up_to_all_pages() {
    let round = Round {
        sent: Some(10),
        sent_then_hinted: Some(4),
        zero: Some(5),
        hole: Some(6),
        hinted: Some(7),
        overridden: Some(2),
        late: Some(9),
        clean: Some(1),
        ..Round::default()
    };
    assert_eq!(fate(&round), [6, 4, 5, 6, 5, 2, 0, 1, 0]);
    assert_eq!(fate(&round).iter().sum::<u64>(), 10 + 5 + 6 + 7 + 1);
}

#[test]
fn one_page_with_everything_and_nothing_from_elsewhere() {
    let mut all =
        vec![entry("a/hints=off", "wherry", 1, 1000), entry("a/hints=on", "wherry", 1, 210)];
    all[0].figures.per_round =
        vec![Round { round: 1, bytes: Some(5), sent: Some(3), hole: Some(7), ..Round::default() }];
    all.push(entry("a/hints=off", "qemu", 1, 5));
    all[2].outcome = "failed".into();
    all[2].error = Some("<script>".into());
    let page = page(&all, &Traces::default()).unwrap();
    for text in [
        "−79 %",
        "cargo xtask bench a/hints=on",
        "&lt;script&gt;",
        "class=\"c3\"",
        "class=\"mark\"",
    ] {
        assert!(page.contains(text), "no {text}");
    }
    for text in ["<script", "src=", "@import", "url("] {
        assert!(!page.contains(text), "{text}");
    }
    assert_eq!(page.matches("<figure>").count(), 3);
}
