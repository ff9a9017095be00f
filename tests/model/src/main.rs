use wherry_model::{mutant::*, protocol::*};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let only = args.get(1).map(String::as_str).unwrap_or("");
    for s in scenarios().iter().filter(|s| s.name.contains(only)) {
        let e = explore(s, None);
        println!(
            "{:10} states {:8} trans {:9} depth {:3} {:?} ends {} {:?}",
            s.name, e.states, e.transitions, e.depth, e.time, e.ends, e.wrong
        );
    }
    if args.get(2).is_some() {
        for m in Mutant::ALL.iter().filter(|m| m.finder() == Finder::Protocol) {
            for s in scenarios().iter().filter(|s| s.name.contains(only)) {
                let e = explore(s, Some(*m));
                if let Some((w, p)) = e.wrong {
                    println!("{m:?} {} {w:?} states {} {:?} len {}", s.name, e.states, e.time, p.len());
                }
            }
        }
        for s in walks() {
            let w = walk(s, None, 0..2000);
            println!("{} {w:?}", s.name);
        }
    }
}
